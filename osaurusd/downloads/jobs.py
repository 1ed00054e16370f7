"""The pulls that there are, remembered over restarts. Tokens are not among what is remembered."""

import asyncio
import secrets
from pathlib import Path

import msgspec

from osaurusd.log import get_logger
from osaurusd.platform.state import StateFile
from osaurusd.wire.pulls import PullInfo, PullState

log = get_logger(__name__)

VERSION = 1
KEPT = 20
"""So many pulls that have ended are remembered."""

ACTIVE = frozenset({PullState.QUEUED, PullState.RUNNING})


class _State(msgspec.Struct, kw_only=True):
    """The file's content, in the order in which the pulls were asked for."""

    version: int = VERSION
    pulls: list[PullInfo] = []


class Jobs:
    """All pulls, in order.

    Args:
        file: where they are kept; one that cannot be read is moved aside, and there are none.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._pulls = {pull.id: _waiting(pull) for pull in self._file.read().pulls}
        self.fault = self._file.fault
        self._saving = asyncio.Lock()

    def all(self) -> list[PullInfo]:
        return list(self._pulls.values())

    def get(self, key: str) -> PullInfo | None:
        return self._pulls.get(key)

    def find(self, repo: str, revision: str) -> PullInfo | None:
        """The pull of this revision of a repo; the hub's names ignore case."""
        wanted = (repo.lower(), revision)
        return next((pull for pull in self._pulls.values() if (pull.repo.lower(), pull.revision) == wanted), None)

    def put(self, pull: PullInfo) -> None:
        """Take over what is known of a pull now; a new one goes to the end. Old ones that ended are forgotten."""
        self._pulls[pull.id] = pull
        ended = [key for key, pull in self._pulls.items() if pull.state not in ACTIVE]
        for key in ended[:-KEPT]:
            del self._pulls[key]

    def drop(self, key: str) -> None:
        """Forget a pull."""
        self._pulls.pop(key, None)

    async def save(self) -> None:
        """Write them down as they are now. A disk that does not take them is logged: pulls go on without."""
        async with self._saving:
            state = _State(pulls=self.all())
            try:
                await asyncio.to_thread(self._file.write, state)
            except OSError as error:
                log.error("the list of pulls could not be written", reason=str(error))  # noqa: TRY400  it says all


def new_id() -> str:
    """An id that no pull has."""
    return secrets.token_hex(4)


def _waiting(pull: PullInfo) -> PullInfo:
    """What ran when an earlier daemon ended waits for its turn."""
    if pull.state is not PullState.RUNNING:
        return pull
    return msgspec.structs.replace(pull, state=PullState.QUEUED, stage=None, bytes_per_second=0, seconds_left=None)
