"""Downloads from the Hugging Face Hub: the queue, the state of each pull, and its child process."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec

from osaurusd import config
from osaurusd.downloads import hub, messages, pulls
from osaurusd.downloads.pulls import PullList
from osaurusd.downloads.reference import parse_reference
from osaurusd.errors import InvalidRequest, ModelNotFound, PullFailed
from osaurusd.events import EventBus
from osaurusd.log import get_logger
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import pulls_folder, repo_folder
from osaurusd.platform.power import PowerAssertion
from osaurusd.rpc import job
from osaurusd.wire.admin import Availability
from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.pulls import PullInfo, PullStage, PullState
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)

MAX_RUNNING = 2

_EVENT_KINDS = {state: EventKind(f"pull_{state}") for state in PullState}


class PullManager:
    """Downloads models into the Hugging Face cache, `MAX_RUNNING` at a time; further pulls are queued.

    Args:
        catalog: is refreshed after each download, and resolves names.
        file: the state file with the list of pulls.
        options: returns the current `[pulls]` configuration.
        error_body: converts an exception into the error of a failed pull.
        bus: receives an event for each change of a pull's state.
        power: keeps the machine awake during downloads.
    """

    def __init__(
        self,
        catalog: Catalog,
        file: Path,
        options: Callable[[], config.Pulls],
        error_body: Callable[[Exception], ErrorBody],
        *,
        bus: EventBus,
        power: PowerAssertion,
    ) -> None:
        self._catalog = catalog
        self._pulls = PullList(file)
        self._options = options
        self._error_body = error_body
        self._bus = bus
        self._power = power
        self._tokens: dict[str, str] = {}
        # Pulls that were requested from this daemon, so that a client may be waiting.
        self._requested: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def fault(self) -> str | None:
        """Why the state file was moved aside, if it was."""
        return self._pulls.fault

    def all(self) -> list[PullInfo]:
        """Return all known pulls in the order in which they were requested."""
        return self._pulls.all()

    def start(self) -> None:
        """Resume the pulls that were active when the previous daemon exited."""
        self._start_queued()

    async def close(self) -> None:
        """Stop all processes; active pulls resume when the daemon starts again."""
        self._closed = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._pulls.save()

    async def add(self, model: str, token: str | None) -> PullInfo:
        """Start a download, or return the active pull of the same model.

        Args:
            model: an API name, an alias, `ORG/REPO` or its URL, optionally followed by `@REVISION` (default: main).
            token: a hub token, kept in memory until the pull finishes.

        Raises:
            InvalidRequest: the name is not valid, or the model does not come from the hub.
            ModelNotFound: no repository is known by the name.
        """
        repo, revision = await self._resolve(model)
        pull = self._pulls.find(repo, revision)
        if pull is not None and pulls.is_active(pull):
            return pull
        pull = pulls.queued(repo, revision, pull)
        # A pull that is requested again moves to the end of the queue.
        self._pulls.drop(pull.id)
        self._requested.add(pull.id)
        if token is not None:
            self._tokens[pull.id] = token
        self._update(pull)
        await self._pulls.save()
        self._start_queued()
        return self._pulls.get(pull.id) or pull

    async def watch(self, pull_ids: Sequence[str]) -> AsyncGenerator[PullInfo]:
        """Yield the given pulls now and after each change, until all have finished.

        Raises:
            InvalidRequest: a pull does not exist.
        """
        for index, pull_id in enumerate(pull_ids):
            if self._pulls.get(pull_id) is None:
                raise InvalidRequest(f'pull "{pull_id}" does not exist', location=("pulls", index))
        sent: dict[str, PullInfo] = {}
        while True:
            changed = self._changed
            watched = [pull for pull_id in pull_ids if (pull := self._pulls.get(pull_id)) is not None]
            for pull in watched:
                if sent.get(pull.id) != pull:
                    sent[pull.id] = pull
                    yield pull
            if not any(pulls.is_active(pull) for pull in watched):
                return
            await changed.wait()

    async def cancel(self, key: str) -> PullInfo:
        """Cancel an active pull by its id or any name of its model; received data is kept.

        Raises:
            ModelNotFound: no such pull is active.
        """
        pull = next((pull for pull in self.all() if pulls.is_active(pull) and pulls.matches(pull, key)), None)
        if pull is None:
            raise ModelNotFound(f'no pull of "{key}" is running or queued', location=("pull",))
        if task := self._running.get(pull.id):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # A task that is cancelled before its first step does not run its own cleanup.
            self._running.pop(pull.id, None)
        pull = self._pulls.get(pull.id) or pull
        if pulls.is_active(pull):
            pull = pulls.finished(pull, PullState.CANCELLED)
            self._update(pull)
        await self._pulls.save()
        self._start_queued()
        return pull

    def folder(self, pull: PullInfo) -> Path:
        """Return the folder with a pull's partial download."""
        return pulls_folder(self._catalog.hub) / repo_folder(self._catalog.hub, pull.repo).name

    def active_folders(self) -> list[Path]:
        """Return the folders of running and queued pulls."""
        return [self.folder(pull) for pull in self.all() if pulls.is_active(pull)]

    async def forget(self, folder: Path) -> None:
        """Drop the finished pulls whose partial download, `folder`, was removed."""
        for pull in self.all():
            if not pulls.is_active(pull) and self.folder(pull).name.lower() == folder.name.lower():
                self._pulls.drop(pull.id)
        await self._pulls.save()

    async def _resolve(self, model: str) -> tuple[str, str]:
        """Return the repository and the revision for the model of a request."""
        name, revision = parse_reference(model)
        if "/" not in name:
            return await self._resolve_name(names.normalize(name)), revision
        return next((repo for repo in names.PUBLISHED if repo.lower() == name.lower()), name), revision

    async def _resolve_name(self, name: str) -> str:
        """Return the repository for an API name or an alias."""
        for repo, published in names.PUBLISHED.items():
            if name == published:
                return repo
        records = await self._catalog.records()
        record = next((record for record in records if name in record.names), None)
        if record is not None and record.source != "hub":
            raise InvalidRequest(f'model "{name}" does not come from the Hugging Face Hub', location=("model",))
        if record is not None:
            return record.repo
        pulled = next((pull.repo for pull in self.all() if pull.name == name), None)
        if target := self._catalog.registry.aliases.get(name, pulled):
            return target
        suggestion = names.did_you_mean(name, [*names.PUBLISHED.values(), *(record.name for record in records)])
        raise ModelNotFound(
            f'no model is known by the name "{name}"; {suggestion + " " if suggestion else ""}'
            f'Run "osaurusctl search {name}" to find its repository, then "osaurusctl pull ORG/REPO".',
            location=("model",),
        )

    def _start_queued(self) -> None:
        """Start queued pulls. Two revisions of a repository share a folder, so only one of them runs at a time."""
        for pull in self.all():
            if self._closed or len(self._running) >= MAX_RUNNING:
                return
            busy = {running.repo.lower() for key in self._running if (running := self._pulls.get(key))}
            if pull.state is PullState.QUEUED and pull.id not in self._running and pull.repo.lower() not in busy:
                self._update(msgspec.structs.replace(pull, state=PullState.RUNNING, stage=PullStage.RESOLVING))
                self._running[pull.id] = asyncio.create_task(self._run(pull.id))

    async def _run(self, pull_id: str) -> None:
        try:
            with self._power.held():
                result = await self._download(pull_id)
            record = await self._find_installed(self._get(pull_id), result)
        except Exception as error:  # noqa: BLE001  an unexpected error must not leave the pull running forever
            self._update(pulls.finished(self._get(pull_id), PullState.FAILED, self._error_body(error)))
        else:
            pull = msgspec.structs.replace(
                self._get(pull_id),
                repo=record.repo,
                name=record.name,
                commit=result.commit,
                done=result.bytes,
                total=result.bytes,
            )
            self._update(pulls.finished(pull, PullState.DONE))
        finally:
            self._running.pop(pull_id, None)
            if not pulls.is_active(self._get(pull_id)):
                self._tokens.pop(pull_id, None)
                self._requested.discard(pull_id)
        await self._pulls.save()
        self._start_queued()

    def _get(self, pull_id: str) -> PullInfo:
        pull = self._pulls.get(pull_id)
        assert pull is not None, "an active pull is never dropped"
        return pull

    async def _download(self, pull_id: str) -> messages.Pulled:
        try:
            return await job.run_until_done(
                f"download of {self._get(pull_id).repo}",
                lambda: self._run_process(pull_id),
                lambda: self._get(pull_id).done,
            )
        except job.JobDied as error:
            raise PullFailed(str(error)) from error

    async def _run_process(self, pull_id: str) -> messages.Pulled:
        pull, options = self._get(pull_id), self._options()
        arguments = [
            *("pull", f"--cache={self._catalog.hub}", f"--repo={pull.repo}", f"--revision={pull.revision}"),
            *(f"--connections={options.connections}", f"--stall={options.stall_seconds}"),
            *(f"--retry={options.retry_seconds}", f"--margin={options.disk_margin_bytes}"),
        ]
        # A pull that resumes after a reboot may have to wait for the network.
        limit = hub.RESPONSE_SECONDS if pull_id in self._requested else None
        try:
            async with (
                asyncio.timeout(None) as timeout,
                contextlib.aclosing(hub.run(arguments, self._tokens.get(pull_id))) as frames,
            ):
                async for frame in frames:
                    hub.limit_response(timeout, frame, limit)
                    if isinstance(frame, messages.Pulled):
                        return frame
                    if isinstance(frame, messages.Progress):
                        self._update(pulls.with_progress(self._get(pull_id), frame))
        except TimeoutError as error:
            reason = self._get(pull_id).note or f"{pull.repo}: the hub did not respond within {limit:g} s"
            raise PullFailed(f"{reason}; check the network, then pull again") from error
        raise job.JobDied("no result")

    async def _find_installed(self, pull: PullInfo, result: messages.Pulled) -> ModelRecord:
        """Return the catalog's record of the downloaded model."""
        record = await self._catalog.find_new(self._catalog.hub, lambda each: each.repo.lower() == pull.repo.lower())
        if record is None:
            raise PullFailed(f"{pull.repo} (commit {result.commit}) was downloaded, but it is missing in the cache")
        if record.state is not Availability.AVAILABLE:
            raise PullFailed(f"{pull.repo} was downloaded, but it is {record.state}: {record.reason}")
        return record

    def _update(self, pull: PullInfo) -> None:
        """Store a pull, publish a change of its state, and wake up watchers."""
        previous = self._pulls.get(pull.id)
        self._pulls.put(pull)
        if previous is None or previous.state is not pull.state:
            reason = pull.error.message if pull.error else None
            log.info("pull", repo=pull.repo, revision=pull.revision, state=pull.state, pull=pull.id, reason=reason)
            self._bus.publish(_EVENT_KINDS[pull.state], pull.name, reason=reason, bytes=pull.done or None)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
