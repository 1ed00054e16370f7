"""The models on this machine, looked up by name. Scans run in a thread; look-ups use what the last one found."""

import asyncio
import time
from pathlib import Path

from osaurusd.catalog import names
from osaurusd.catalog.record import ModelRecord
from osaurusd.catalog.scan import scan
from osaurusd.errors import ModelNotDownloaded, ModelNotFound
from osaurusd.wire.admin import ModelState

# Other tools add and remove models whenever they like; a listing may be this old.
MAX_AGE_SECONDS = 2.0


class Catalog:
    """Knows every model below the two roots.

    Args:
        models_dir: our own folder of imported models.
        hub: the Hugging Face cache.
    """

    def __init__(self, models_dir: Path, hub: Path) -> None:
        self.models_dir = models_dir
        self._hub = hub
        self._records: list[ModelRecord] = []
        self._scanned_at = float("-inf")
        self._scanning: asyncio.Task[list[ModelRecord]] | None = None

    async def records(self) -> list[ModelRecord]:
        """All models, those that cannot be served included; at most `MAX_AGE_SECONDS` old."""
        if time.monotonic() - self._scanned_at > MAX_AGE_SECONDS:
            await self.refresh()
        return self._records

    async def available(self) -> list[ModelRecord]:
        """The models that can be served."""
        return [record for record in await self.records() if record.state is ModelState.AVAILABLE]

    async def refresh(self) -> None:
        """Look at the disk now. Callers at the same time share one scan."""
        if self._scanning is None:
            self._scanning = asyncio.create_task(asyncio.to_thread(scan, self.models_dir, self._hub))
            self._scanning.add_done_callback(self._take)
        # A caller that is cancelled leaves the scan to the others.
        await asyncio.shield(self._scanning)

    async def find(self, model: str) -> ModelRecord:
        """The available model that goes by `model`: its API name or repo id, in any case.

        Raises:
            ModelNotFound: there is none, or it cannot be served; the message names near matches or the reason.
            ModelNotDownloaded: the name is known, but the model is not on this machine.
        """
        record = _match(await self.records(), model)
        if record is None:
            await self.refresh()
            record = _match(self._records, model)
        if record is None:
            raise self._missing(model)
        if record.state is not ModelState.AVAILABLE:
            raise ModelNotFound(f"the model `{record.name}` is {record.state}: {record.reason}", param="model")
        return record

    def _take(self, task: asyncio.Task[list[ModelRecord]]) -> None:
        self._scanning = None
        if not task.cancelled() and task.exception() is None:
            self._records = task.result()
            self._scanned_at = time.monotonic()

    def _missing(self, model: str) -> ModelNotFound:
        for repo, name in names.PUBLISHED.items():
            if model.lower() in (repo.lower(), name):
                return ModelNotDownloaded(
                    f"the model `{name}` is not downloaded; get it with `hf download {repo}`", param="model"
                )
        here = [record.name for record in self._records if record.state is ModelState.AVAILABLE]
        near = names.near(model, here)
        if near:
            hint = "did you mean " + " or ".join(f"`{name}`" for name in near) + "?"
        elif here:
            hint = "available models: " + ", ".join(f"`{name}`" for name in here[:10])
        else:
            hint = "no model is available yet; bring one in with `osaurusctl import`"
        return ModelNotFound(f"there is no model `{model}`; {hint}", param="model")


def _match(records: list[ModelRecord], model: str) -> ModelRecord | None:
    wanted = model.lower()
    return next((record for record in records if wanted in (record.name, record.repo.lower())), None)
