"""The daemon's view of its environment, for `osaurusctl doctor`."""

import msgspec


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """Python and package versions of a process."""

    python: str
    executable: str
    packages: dict[str, str]


class StoreProbe(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the daemon can read a model folder; `reason` explains why not.

    `missing` marks a folder of `models.roots` that does not exist.
    """

    path: str
    readable: bool
    reason: str | None = None
    missing: bool = False


class HostsDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What `osaurusctl doctor` shows of the connections to other hosts.

    Attributes:
        listen: the configured address; empty if this host accepts none.
        endpoints: the addresses that accept connections now.
        fault: why the configured address does not.
        unreachable: why paired hosts do not respond, by name.
        unusable_links: why link addresses of paired hosts cannot carry tensors, by name.
        hosts: number of paired hosts that accept connections.
    """

    listen: str = ""
    endpoints: list[str] = []
    fault: str | None = None
    unreachable: dict[str, str] = {}
    unusable_links: dict[str, str] = {}
    hosts: int = 0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's view of its environment.

    Attributes:
        installation: versions at the start of the daemon, even if an upgrade has changed the files since.
        blas: the BLAS library preloaded into workers.
        vision_refusals: why models with a vision tower do not accept images, by their names.
        tasks: number of running asyncio tasks by coroutine.
    """

    installation: Installation
    stores: list[StoreProbe]
    blas: str | None
    open_files: int
    open_files_limit: int
    tasks: dict[str, int] = {}
    vision_refusals: dict[str, str] = {}
    hosts: HostsDiagnosis = HostsDiagnosis()
