"""The models on this machine, and how requests find them by name."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from osaurusd.errors import ModelNotDownloaded, ModelNotFound
from osaurusd.models import names
from osaurusd.models.names import NameRegistry
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import Root
from osaurusd.models.scan import BackgroundScanner, Scanner
from osaurusd.wire.admin import Availability

# Other programs add and remove models at any time, so that the result of a scan expires.
MAX_AGE_SECONDS = 2.0

NEW_MODEL_SECONDS = 60.0
"""How long to wait for the root of a model that was just added: the disk may be busy."""

_MAX_LISTED = 10


class Catalog:
    """All models of all roots.

    Args:
        models_dir: the folder for imported models.
        hub: the Hugging Face cache.
        registry: persists names and aliases.
        extra_roots: further folders with models.
    """

    def __init__(self, models_dir: Path, hub: Path, registry: NameRegistry, extra_roots: Sequence[Path] = ()) -> None:
        self.models_dir = models_dir
        self.hub = hub
        self.registry = registry
        self._records: list[ModelRecord] = []
        self._scanned_at = float("-inf")
        self._scanning: asyncio.Task[None] | None = None
        self._extra_roots = list(extra_roots)
        self._scanners = self._create_scanners()

    def set_extra_roots(self, paths: Sequence[Path]) -> None:
        """Replace the extra roots; takes effect with the next scan."""
        if list(paths) == self._extra_roots:
            return
        self._extra_roots = list(paths)
        self._scanners = self._create_scanners()
        self._records = []
        self._scanned_at = float("-inf")
        self._scanning = None

    @property
    def faults(self) -> list[str]:
        """One line for each root that cannot be read."""
        return [scanner.fault for scanner in self._scanners if scanner.fault is not None]

    async def records(self) -> list[ModelRecord]:
        """Return all models, including incomplete ones, at most `MAX_AGE_SECONDS` old for roots that respond."""
        if time.monotonic() - self._scanned_at > MAX_AGE_SECONDS:
            await self._join_scan()
        return self._records

    async def available(self) -> list[ModelRecord]:
        """Return the models that can be served."""
        return [record for record in await self.records() if record.state is Availability.AVAILABLE]

    async def refresh(self) -> None:
        """Scan the disk now; concurrent callers share one scan."""
        if self._scanning is not None:
            # The running scan may have missed what the caller has just written.
            await asyncio.shield(self._scanning)
        await self._join_scan()

    async def find_new(self, root: Path, is_new: Callable[[ModelRecord], bool]) -> ModelRecord | None:
        """Return the record of a model that was just added to a root; None if it is missing.

        Unlike other callers, this waits for a root that responds late, for at most `NEW_MODEL_SECONDS`.
        """
        await self.refresh()
        scanner = next(each for each in self._scanners if each.root.path == root)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEW_MODEL_SECONDS):
                while await scanner.wait_for_late_scan():
                    await self.refresh()  # takes the result, which may be older than the model
                    await self.refresh()
        return next(filter(is_new, self._records), None)

    async def find(self, model: str) -> ModelRecord:
        """Find an available model by API name, alias or repository id, ignoring case.

        Raises:
            ModelNotFound: no such model exists, or it cannot be served.
            ModelNotDownloaded: the name is known, but the model is not on this machine.
        """
        record = await self.find_any(model)
        if record.state is not Availability.AVAILABLE:
            raise ModelNotFound(f'model "{record.name}" is {record.state}: {record.reason}', location=("model",))
        return record

    async def find_any(self, model: str) -> ModelRecord:
        """Like `find`, but including models that cannot be served."""
        record = self._match(await self.records(), model)
        if record is None:
            await self.refresh()
            record = self._match(self._records, model)
        if record is None:
            raise self._not_found(model)
        return record

    def _create_scanners(self) -> list[BackgroundScanner]:
        extra = [Root("extra", path) for path in self._extra_roots]
        roots = [Root("imported", self.models_dir), Root("hub", self.hub), *extra]
        boundaries = [root.path for root in roots if root.source != "imported"]
        return [BackgroundScanner(Scanner(root, boundaries)) for root in roots]

    async def _join_scan(self) -> None:
        if self._scanning is None:
            self._scanning = asyncio.create_task(self._scan())
        # Cancelling one caller must not cancel the scan for the others.
        await asyncio.shield(self._scanning)

    async def _scan(self) -> None:
        scanners = self._scanners
        try:
            await asyncio.gather(*(scanner.scan() for scanner in scanners))
            await asyncio.to_thread(self._update_records, scanners)
        finally:
            # If the roots were replaced during the scan, its result is already outdated.
            if scanners is self._scanners:
                self._scanned_at = time.monotonic()
                self._scanning = None

    def _update_records(self, scanners: Sequence[BackgroundScanner]) -> None:
        """Assign names and aliases to the scanned models."""
        by_repo: dict[str, ModelRecord] = {}
        for scanner in scanners:
            for record in scanner.records:
                # A second copy of a repository is identified by its path.
                key = record.repo if record.repo not in by_repo else str(record.path)
                by_repo[key] = replace(record, repo=key)
        # Available models have priority for names, then older ones.
        ordered = sorted(by_repo.values(), key=lambda r: (r.state is not Availability.AVAILABLE, r.created, r.repo))
        assigned = self.registry.assign_names([record.repo for record in ordered], keep_missing=bool(self.faults))
        aliases = self.registry.aliases
        named = (
            replace(record, name=assigned[repo], aliases=tuple(a for a, target in aliases.items() if target == repo))
            for repo, record in by_repo.items()
        )
        self._records = sorted(named, key=lambda record: record.name)

    def _match(self, records: list[ModelRecord], model: str) -> ModelRecord | None:
        name = names.normalize(model)
        return next((r for r in records if name in (r.name, names.normalize(r.repo), *r.aliases)), None)

    def _not_found(self, model: str) -> ModelNotFound:
        known = {alias: alias for alias in self.registry.aliases}
        known |= {key: name for repo, name in names.PUBLISHED.items() for key in (repo.lower(), name)}
        if name := known.get(model.lower()):
            return ModelNotDownloaded(
                f'model "{name}" is not downloaded; run "osaurusctl pull {name}"', location=("model",)
            )
        available = [record.name for record in self._records if record.state is Availability.AVAILABLE]
        if not available:
            hint = 'no models are available yet; run "osaurusctl pull NAME" to download one'
        else:
            listed = f"available models: {', '.join(names.quoted(available[:_MAX_LISTED]))}"
            hint = names.did_you_mean(model, available) or listed
        return ModelNotFound(f'model "{model}" does not exist; {hint}', location=("model",))
