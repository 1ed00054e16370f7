"""The list of pulls, which survives restarts of the daemon, and the transitions of a pull."""

import asyncio
import secrets
import time
from pathlib import Path

import msgspec

from osaurusd.downloads import messages
from osaurusd.log import get_logger
from osaurusd.models import names
from osaurusd.platform.state_file import StateFile
from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.pulls import PullInfo, PullState

log = get_logger(__name__)

_STATE_VERSION = 1

MAX_FINISHED = 20
"""How many finished pulls are kept."""


def is_active(pull: PullInfo) -> bool:
    """Whether a pull is running or queued."""
    return pull.state in (PullState.QUEUED, PullState.RUNNING)


def queued(repo: str, revision: str, previous: PullInfo | None) -> PullInfo:
    """Create a queued pull; one that was pulled before keeps its id and progress."""
    return PullInfo(
        id=previous.id if previous else secrets.token_hex(4),
        repo=repo,
        revision=revision,
        name=names.api_name(repo),
        state=PullState.QUEUED,
        added=int(time.time()),
        done=previous.done if previous else 0,
        total=previous.total if previous else 0,
    )


def with_progress(pull: PullInfo, frame: messages.Progress) -> PullInfo:
    """Return a pull with the progress that its process has reported."""
    rate = frame.bytes_per_second
    return msgspec.structs.replace(
        pull,
        stage=frame.stage,
        # Until the hub has answered, the figures of an earlier attempt remain.
        done=frame.done if frame.total else pull.done,
        total=frame.total or pull.total,
        hashed=frame.hashed,
        to_hash=frame.to_hash,
        bytes_per_second=rate,
        seconds_left=(frame.total - frame.done) / rate if rate and frame.total else None,
        commit=frame.commit or pull.commit,
        note=frame.note,
    )


def finished(pull: PullInfo, state: PullState, error: ErrorBody | None = None) -> PullInfo:
    """Return a pull that is done, failed or cancelled."""
    return msgspec.structs.replace(
        pull, state=state, stage=None, bytes_per_second=0, seconds_left=None, note=None, error=error
    )


def matches(pull: PullInfo, key: str) -> bool:
    """Whether `key` is a pull's id, name or repository, with or without the revision, ignoring case."""
    repo = pull.repo.lower()
    return key.lower() in (pull.id, pull.name, repo, f"{repo}@{pull.revision}", f"{pull.name}@{pull.revision}")


class _State(msgspec.Struct, kw_only=True):
    """The content of the state file."""

    version: int = _STATE_VERSION
    pulls: list[PullInfo] = []


class PullList:
    """All pulls in the order in which they were requested. Tokens are not part of it.

    Args:
        file: the state file; an unreadable one is moved aside.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._pulls = {pull.id: _requeued(pull) for pull in self._file.read().pulls}
        self._saving = asyncio.Lock()

    @property
    def fault(self) -> str | None:
        """Why the state file was moved aside, if it was."""
        return self._file.fault

    def all(self) -> list[PullInfo]:
        return list(self._pulls.values())

    def get(self, pull_id: str) -> PullInfo | None:
        return self._pulls.get(pull_id)

    def find(self, repo: str, revision: str) -> PullInfo | None:
        """Return the pull of a repository's revision; repository names ignore case."""
        key = (repo.lower(), revision)
        return next((pull for pull in self._pulls.values() if (pull.repo.lower(), pull.revision) == key), None)

    def put(self, pull: PullInfo) -> None:
        """Add or update a pull, and drop the oldest finished ones."""
        self._pulls[pull.id] = pull
        finished_ids = [pull.id for pull in self._pulls.values() if not is_active(pull)]
        for pull_id in finished_ids[:-MAX_FINISHED]:
            del self._pulls[pull_id]

    def drop(self, pull_id: str) -> None:
        self._pulls.pop(pull_id, None)

    async def save(self) -> None:
        """Write the state file. A failure is logged; pulls continue regardless."""
        async with self._saving:
            state = _State(pulls=self.all())
            try:
                await asyncio.to_thread(self._file.write, state)
            except OSError as error:
                log.error("cannot write the list of pulls", reason=str(error))  # noqa: TRY400  the reason is complete


def _requeued(pull: PullInfo) -> PullInfo:
    """Return a pull as queued if it was running when the daemon exited."""
    if pull.state is not PullState.RUNNING:
        return pull
    return msgspec.structs.replace(pull, state=PullState.QUEUED, stage=None, bytes_per_second=0, seconds_left=None)
