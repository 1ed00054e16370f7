"""The models on this machine, looked up by name. Look-ups use what the last scan found, if that is recent."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from osaurusd.errors import ModelNotDownloaded, ModelNotFound
from osaurusd.models import names
from osaurusd.models.record import ModelRecord
from osaurusd.models.registry import Registry
from osaurusd.models.roots import Root
from osaurusd.models.scan import Scanner
from osaurusd.models.watch import Watch
from osaurusd.wire.admin import ModelState

# Other tools add and remove models whenever they like; a listing may be this old.
MAX_AGE_SECONDS = 2.0


class Catalog:
    """Knows every model below its roots.

    Args:
        models_dir: our own folder of imported models.
        hub: the Hugging Face cache.
        extra: further folders of models.
        registry: remembers names and aliases.
    """

    def __init__(self, models_dir: Path, hub: Path, registry: Registry, extra: Sequence[Path] = ()) -> None:
        self.models_dir = models_dir
        self.hub = hub
        self.registry = registry
        self._extra: list[Path] | None = None
        self.set_extra(extra)

    def set_extra(self, extra: Sequence[Path]) -> None:
        """Look into these folders too, from the next scan on."""
        if list(extra) == self._extra:
            return
        self._extra = list(extra)
        roots = [Root("imported", self.models_dir), Root("hub", self.hub), *(Root("extra", path) for path in extra)]
        boundaries = [root.path for root in roots if root.source != "imported"]
        self._watches = [Watch(Scanner(root, boundaries)) for root in roots]
        self._records: list[ModelRecord] = []
        self._scanned_at = float("-inf")
        self._scanning: asyncio.Task[None] | None = None

    @property
    def faults(self) -> list[str]:
        """What is wrong with roots, a line each."""
        return [watch.fault for watch in self._watches if watch.fault is not None]

    async def records(self) -> list[ModelRecord]:
        """All models, those that cannot be served included; at most `MAX_AGE_SECONDS` old where roots answer."""
        if time.monotonic() - self._scanned_at > MAX_AGE_SECONDS:
            await self._join_scan()
        return self._records

    async def available(self) -> list[ModelRecord]:
        """The models that can be served."""
        return [record for record in await self.records() if record.state is ModelState.AVAILABLE]

    async def refresh(self) -> None:
        """Look at the disk as it is now; callers at the same time share one scan."""
        if self._scanning is not None:
            # It may have passed by what the caller has just put there.
            await asyncio.shield(self._scanning)
        await self._join_scan()

    async def find(self, model: str) -> ModelRecord:
        """The available model that goes by `model`: its API name, an alias or its repo id, in any case.

        Raises:
            ModelNotFound: there is none, or it cannot be served; the message names near matches or the reason.
            ModelNotDownloaded: the name is known, but the model is not on this machine.
        """
        record = await self.find_any(model)
        if record.state is not ModelState.AVAILABLE:
            raise ModelNotFound(f"the model `{record.name}` is {record.state}: {record.reason}", param="model")
        return record

    async def find_any(self, model: str) -> ModelRecord:
        """As `find`, but models that cannot be served are found too."""
        record = self._match(await self.records(), model)
        if record is None:
            await self.refresh()
            record = self._match(self._records, model)
        if record is None:
            raise self._missing(model)
        return record

    async def _join_scan(self) -> None:
        if self._scanning is None:
            self._scanning = asyncio.create_task(self._scan())
        # A caller that is cancelled leaves the scan to the others.
        await asyncio.shield(self._scanning)

    async def _scan(self) -> None:
        watches = self._watches
        try:
            await asyncio.gather(*(watch.look() for watch in watches))
            await asyncio.to_thread(self._name_all, watches)
        finally:
            # Unless other roots were set meanwhile: then this scan counts for nothing.
            if watches is self._watches:
                self._scanned_at = time.monotonic()
                self._scanning = None

    def _name_all(self, watches: list[Watch]) -> None:
        """Give every model its name."""
        found: dict[str, ModelRecord] = {}
        for watch in watches:
            for record in watch.records:
                # The same repo in a second place goes by that place.
                key = record.repo if record.repo not in found else str(record.path)
                found[key] = replace(record, repo=key)
        # Models that can be served choose first, then those that came first.
        order = sorted(found.values(), key=lambda r: (r.state is not ModelState.AVAILABLE, r.created, r.repo))
        assigned = self.registry.name([record.repo for record in order], keep_absent=bool(self.faults))
        aliases = self.registry.aliases
        named = (
            replace(record, name=assigned[repo], aliases=tuple(a for a, target in aliases.items() if target == repo))
            for repo, record in found.items()
        )
        self._records = sorted(named, key=lambda record: record.name)

    def _match(self, records: list[ModelRecord], model: str) -> ModelRecord | None:
        wanted = model.lower()
        return next((r for r in records if wanted in (r.name, r.repo.lower(), *r.aliases)), None)

    def _missing(self, model: str) -> ModelNotFound:
        known = {alias: alias for alias in self.registry.aliases}
        known |= {key: name for repo, name in names.PUBLISHED.items() for key in (repo.lower(), name)}
        if name := known.get(model.lower()):
            return ModelNotDownloaded(
                f"the model `{name}` is not downloaded; `osaurusctl pull {name}` gets it", param="model"
            )
        here = [record.name for record in self._records if record.state is ModelState.AVAILABLE]
        if near := names.near(model, here):
            hint = "did you mean " + " or ".join(f"`{name}`" for name in near) + "?"
        elif here:
            hint = "available models: " + ", ".join(f"`{name}`" for name in here[:10])
        else:
            hint = "no model is available yet; `osaurusctl pull NAME` downloads one"
        return ModelNotFound(f"there is no model `{model}`; {hint}", param="model")
