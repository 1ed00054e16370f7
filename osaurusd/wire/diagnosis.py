"""What only the daemon can know about its surroundings, for `osaurusctl doctor`."""

import msgspec


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """Python and packages of a process."""

    python: str
    executable: str
    packages: dict[str, str]


class StoreProbe(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the daemon can read a folder of models; `reason` says why not."""

    path: str
    readable: bool
    reason: str | None = None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon and its surroundings as it sees them. `installation` is that of its start, whatever lies on disk now;
    `tasks` are the coroutines that run in it, and how many of each."""

    installation: Installation
    stores: list[StoreProbe]
    blas: str | None
    open_files: int
    open_files_limit: int
    tasks: dict[str, int] = {}
