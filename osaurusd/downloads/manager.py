"""Downloads from the hub: who is next, how far each is, and what becomes of it. A process for each does the work."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec

from osaurusd import config
from osaurusd.downloads import hub
from osaurusd.downloads.jobs import ACTIVE, Jobs, new_id
from osaurusd.errors import InvalidRequest, ModelNotFound, PullFailed
from osaurusd.events import Bus
from osaurusd.log import get_logger
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import pulls_folder, repo_folder
from osaurusd.platform.power import Awake
from osaurusd.rpc import child, messages
from osaurusd.wire.admin import ModelState
from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.pulls import PullInfo, PullStage, PullState
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)

AT_ONCE = 2
DEATHS = 5
"""So often in a row the process may die without having received anything."""

_DEATH_PAUSE_SECONDS = 0.5

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_MAX_LENGTH = 200

_KINDS = {state: EventKind(f"pull_{state}") for state in PullState}

Body = Callable[[Exception], ErrorBody]


class Pulls:
    """All downloads into a catalog's Hugging Face cache. Two run at a time, the rest wait in order.

    Args:
        catalog: learns of what has arrived.
        file: where they are remembered.
        options: the limits in force.
        body: how an error is written down.
        bus: is told when a pull begins, ends or waits.
        awake: held while models are downloaded.
    """

    def __init__(
        self,
        catalog: Catalog,
        file: Path,
        options: Callable[[], config.Pulls],
        body: Body,
        *,
        bus: Bus | None = None,
        awake: Awake | None = None,
    ) -> None:
        self._catalog = catalog
        self._bus = bus or Bus()
        self._awake = awake or Awake()
        self._jobs = Jobs(file)
        self._options = options
        self._body = body
        self._tokens: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._closed = False

    @property
    def fault(self) -> str | None:
        """What was wrong with the file."""
        return self._jobs.fault

    def all(self) -> list[PullInfo]:
        """Every pull that is remembered, in order."""
        return self._jobs.all()

    def start(self) -> None:
        """Go on with what an earlier daemon left."""
        self._fill()

    async def close(self) -> None:
        """End all processes; the pulls go on when the next daemon starts."""
        self._closed = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._jobs.save()

    async def add(self, model: str, token: str | None) -> PullInfo:
        """Download a model, or join the pull that does so already.

        Args:
            model: an API name, an alias or `ORG/REPO`, with `@REVISION` behind it if not `main` is meant.
            token: for the hub, kept in memory until the pull ends.

        Raises:
            InvalidRequest: it cannot be the name of a model on the hub.
            ModelNotFound: no repo is known by that name.
        """
        repo, revision = await self._meant(model)
        pull = self._jobs.find(repo, revision)
        if pull is None or pull.state not in ACTIVE:
            fresh = PullInfo(
                id=pull.id if pull else new_id(),
                repo=repo,
                revision=revision,
                name=names.api_name(repo),
                state=PullState.QUEUED,
                added=int(time.time()),
                done=pull.done if pull else 0,
                total=pull.total if pull else 0,
            )
            self._jobs.drop(fresh.id)
            if token is not None:
                self._tokens[fresh.id] = token
            self._changed(fresh)
            await self._jobs.save()
            self._fill()
            pull = self._jobs.get(fresh.id) or fresh
        return pull

    async def watch(self, keys: Sequence[str]) -> AsyncGenerator[PullInfo]:
        """Each of these pulls as it is now and whenever that changes, until all have ended.

        Raises:
            InvalidRequest: there is no such pull.
        """
        for at, key in enumerate(keys):
            if self._jobs.get(key) is None:
                raise InvalidRequest(f"`pulls[{at}]`: there is no pull {key!r}", param=f"pulls[{at}]")
        told: dict[str, PullInfo] = {}
        while True:
            news = self._news
            pulls = [pull for key in keys if (pull := self._jobs.get(key)) is not None]
            for pull in pulls:
                if told.get(pull.id) != pull:
                    told[pull.id] = pull
                    yield pull
            if not any(pull.state in ACTIVE for pull in pulls):
                return
            await news.wait()

    async def cancel(self, key: str) -> PullInfo:
        """End a pull by its id or any name of its model; what it has received stays.

        Raises:
            ModelNotFound: no such pull runs or waits.
        """
        found = next((pull for pull in self.all() if pull.state in ACTIVE and _goes_by(pull, key)), None)
        if found is None:
            raise ModelNotFound(f"no pull of `{key}` runs or waits", param="pull")
        if task := self._running.get(found.id):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # One that had not begun yet could not do so itself.
            self._running.pop(found.id, None)
        pull = self._jobs.get(found.id) or found
        if pull.state in ACTIVE:
            pull = _ended(pull, PullState.CANCELLED)
            self._changed(pull)
        await self._jobs.save()
        self._fill()
        return pull

    def folder(self, pull: PullInfo) -> Path:
        """Where its files lie until it is through."""
        return pulls_folder(self._catalog.hub) / repo_folder(self._catalog.hub, pull.repo).name

    def in_use(self) -> list[Path]:
        """The folders of pulls that run or wait."""
        return [self.folder(pull) for pull in self.all() if pull.state in ACTIVE]

    async def forget(self, folder: Path) -> None:
        """What was received of a repo was removed: the pull begins anew, if it is asked for again."""
        for pull in self.all():
            if pull.state not in ACTIVE and self.folder(pull).name.lower() == folder.name.lower():
                self._jobs.drop(pull.id)
        await self._jobs.save()

    async def _meant(self, model: str) -> tuple[str, str]:
        """Repo and revision that a request means."""
        name, at, revision = model.strip().partition("@")
        revision = revision if at else "main"
        if len(model) > _MAX_LENGTH or not _REVISION.fullmatch(revision) or ".." in revision:
            raise InvalidRequest(f"`model`: {revision!r} cannot be a revision", param="model")
        if "/" not in name:
            return await self._repo_of(name.lower()), revision
        if not _REPO.fullmatch(name) or "--" in name or ".." in name:
            raise InvalidRequest(f"`model`: {name!r} cannot be a repo on the hub", param="model")
        return next((repo for repo in names.PUBLISHED if repo.lower() == name.lower()), name), revision

    async def _repo_of(self, name: str) -> str:
        """The repo behind an API name or an alias."""
        for repo, published in names.PUBLISHED.items():
            if name == published:
                return repo
        records = await self._catalog.records()
        record = next((record for record in records if name in (record.name, *record.aliases)), None)
        if record is not None and record.source != "hub":
            raise InvalidRequest(f"`model`: `{name}` did not come from the hub", param="model")
        pulled = next((pull.repo for pull in self.all() if pull.name == name), None)
        if found := record.repo if record else self._catalog.registry.aliases.get(name, pulled):
            return found
        near = names.near(name, [*names.PUBLISHED.values(), *(record.name for record in records)])
        hint = f"did you mean {' or '.join(f'`{each}`' for each in near)}? " if near else ""
        raise ModelNotFound(
            f"no repo is known by the name `{name}`; {hint}`osaurusctl search {name}` asks the hub, and "
            "`osaurusctl pull ORG/REPO` takes any model from there",
            param="model",
        )

    def _fill(self) -> None:
        """Start what may run now. Two revisions of a repo share a folder, so they do not run at once."""
        for pull in self.all():
            if self._closed or len(self._running) >= AT_ONCE:
                return
            busy = {running.repo.lower() for key in self._running if (running := self._jobs.get(key))}
            if pull.state is PullState.QUEUED and pull.id not in self._running and pull.repo.lower() not in busy:
                self._changed(msgspec.structs.replace(pull, state=PullState.RUNNING, stage=PullStage.RESOLVING))
                self._running[pull.id] = asyncio.create_task(self._run(pull.id))

    async def _run(self, key: str) -> None:
        try:
            with self._awake.held():
                pulled = await self._fetch(key)
            record = await self._arrived(self._pull(key), pulled)
        except Exception as error:  # noqa: BLE001  whatever the reason, it must not seem to go on
            self._changed(_ended(self._pull(key), PullState.FAILED, self._body(error)))
        else:
            size = pulled.bytes
            whole = msgspec.structs.replace(self._pull(key), repo=record.repo, name=record.name, done=size, total=size)
            whole = msgspec.structs.replace(whole, commit=pulled.commit)
            self._changed(_ended(whole, PullState.DONE))
        finally:
            self._running.pop(key, None)
            if self._pull(key).state not in ACTIVE:
                self._tokens.pop(key, None)
        await self._jobs.save()
        self._fill()

    def _pull(self, key: str) -> PullInfo:
        pull = self._jobs.get(key)
        assert pull is not None, "a pull that runs is never forgotten"
        return pull

    async def _fetch(self, key: str) -> messages.Pulled:
        """Have a process do it; one that dies is followed by another, as long as something comes."""
        deaths = 0
        while True:
            before = self._pull(key).done
            try:
                return await self._follow(key)
            except child.ChildDied as error:
                deaths = 0 if self._pull(key).done > before else deaths + 1
                log.warning("a download died and is started again", repo=self._pull(key).repo, reason=str(error))
                if deaths > DEATHS:
                    raise PullFailed(f"the process that downloads it died {deaths} times ({error})") from error
            await asyncio.sleep(deaths * _DEATH_PAUSE_SECONDS)

    async def _follow(self, key: str) -> messages.Pulled:
        """Run one process to its end, and keep what it tells."""
        pull, options = self._pull(key), self._options()
        arguments = [
            *("pull", f"--cache={self._catalog.hub}", f"--repo={pull.repo}", f"--revision={pull.revision}"),
            *(f"--connections={options.connections}", f"--stall={options.stall_seconds}"),
            *(f"--patience={options.patience_seconds}", f"--margin={options.disk_margin_bytes}"),
        ]
        async with contextlib.aclosing(hub.run(arguments, self._tokens.get(key))) as frames:
            async for frame in frames:
                if isinstance(frame, messages.Pulled):
                    return frame
                if isinstance(frame, messages.Pulling):
                    self._changed(_with(self._pull(key), frame))
        raise child.ChildDied("it had nothing more to say")

    async def _arrived(self, pull: PullInfo, pulled: messages.Pulled) -> ModelRecord:
        """The model, now that it is in the cache."""
        await self._catalog.refresh()
        records = await self._catalog.records()
        record = next((each for each in records if each.repo.lower() == pull.repo.lower()), None)
        if record is None:
            raise PullFailed(f"{pull.repo}: commit {pulled.commit} was put into the cache and is not found there")
        if record.state is not ModelState.AVAILABLE:
            raise PullFailed(f"{pull.repo}: it was downloaded and is {record.state}: {record.reason}")
        return record

    def _changed(self, pull: PullInfo) -> None:
        """Take over what is known of a pull now, and wake those who watch."""
        known = self._jobs.get(pull.id)
        self._jobs.put(pull)
        if known is None or known.state is not pull.state:
            reason = pull.error.message if pull.error else None
            log.info("pull", repo=pull.repo, revision=pull.revision, state=pull.state, pull=pull.id, reason=reason)
            self._bus.publish(_KINDS[pull.state], pull.name, reason=reason, bytes=pull.done or None)
        news, self._news = self._news, asyncio.Event()
        news.set()


def _goes_by(pull: PullInfo, key: str) -> bool:
    wanted = key.lower()
    repo = pull.repo.lower()
    return wanted in (pull.id, pull.name, repo, f"{repo}@{pull.revision}", f"{pull.name}@{pull.revision}")


def _with(pull: PullInfo, frame: messages.Pulling) -> PullInfo:
    """A pull as its process last told."""
    rate = frame.bytes_per_second
    return msgspec.structs.replace(
        pull,
        stage=frame.stage,
        # Before the hub has said, what an earlier try knew is better than nothing.
        done=frame.done if frame.total else pull.done,
        total=frame.total or pull.total,
        hashed=frame.hashed,
        to_hash=frame.to_hash,
        bytes_per_second=rate,
        seconds_left=(frame.total - frame.done) / rate if rate and frame.total else None,
        commit=frame.commit or pull.commit,
        note=frame.note,
    )


def _ended(pull: PullInfo, state: PullState, error: ErrorBody | None = None) -> PullInfo:
    return msgspec.structs.replace(
        pull, state=state, stage=None, bytes_per_second=0, seconds_left=None, note=None, error=error
    )
