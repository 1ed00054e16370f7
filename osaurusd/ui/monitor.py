"""What the page shows: one sampler for all pages, which encodes each change once.

While pages are open, it looks for changes every second. Otherwise it only takes a sample of the last hour's charts
every few seconds.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

import msgspec

from osaurusd import __version__
from osaurusd.activity import Activity
from osaurusd.config import Config
from osaurusd.log import get_logger
from osaurusd.models.catalog import Catalog
from osaurusd.pool.metrics import PoolMetrics
from osaurusd.pool.pool import Pool
from osaurusd.ui import views
from osaurusd.ui.types import (
    History,
    Memory,
    ModelEntry,
    ModelsChanged,
    RequestEntry,
    RequestsChanged,
    Sample,
    Snapshot,
    WorkerEntry,
    WorkersChanged,
)

log = get_logger(__name__)

TICK_SECONDS = 1.0
"""How often changes are published."""

SAMPLE_SECONDS = 5
MAX_SAMPLES = 3600 // SAMPLE_SECONDS

MODELS_TICKS = 5
"""After how many ticks the models on disk are compared again; that reads folders."""

MAX_UNREAD = 32
"""A page with more unread events than this is disconnected."""

MAX_PAGES = 100
"""Pages that are served at the same time; the one that has been open longest is disconnected for a new one."""

Event = tuple[str, bytes]
"""The name of an event, and its data as JSON."""

_encode = msgspec.json.Encoder().encode


class Monitor:
    """Publishes the state of the daemon to the pages.

    Args:
        instance: identifies this run of the daemon.
        catalog, pool, metrics: the models on disk and in memory.
        activity: the requests.
        config: returns the configuration in force.
    """

    def __init__(
        self,
        instance: str,
        catalog: Catalog,
        pool: Pool,
        metrics: PoolMetrics,
        activity: Activity,
        config: Callable[[], Config],
    ) -> None:
        self._instance = instance
        self._started_at = time.time()
        self._catalog = catalog
        self._pool = pool
        self._metrics = metrics
        self._activity = activity
        self._config = config
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._pages: list[asyncio.Queue[Event | None]] = []
        self._opened = asyncio.Event()
        self._closed = False
        self._ticks = 0
        self._sampled_at = float("-inf")
        self._published: dict[str, bytes] = {}
        self._finished_count = 0

    async def run(self) -> None:
        """Sample and publish until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() >= self._sampled_at + SAMPLE_SECONDS:
                self._sampled_at = loop.time()
                self.sample()
            if self._pages:
                try:
                    await self.publish_changes()
                except Exception:  # the next change may be publishable
                    log.exception("cannot update the page")
                await asyncio.sleep(TICK_SECONDS)
            else:
                self._opened.clear()
                with contextlib.suppress(TimeoutError):
                    remaining = self._sampled_at + SAMPLE_SECONDS - loop.time()
                    await asyncio.wait_for(self._opened.wait(), max(remaining, 0.001))

    def sample(self) -> None:
        """Add a sample to the last hour."""
        workers = self._pool.snapshot()
        sample = Sample(
            time=round(time.time()),
            tokens_per_second=round(sum(worker.tokens_per_second for worker in workers), 1),
            memory_bytes=self._pool.budget.used_bytes,
            in_flight=sum(worker.in_flight for worker in workers),
            waiting=sum(worker.waiting for worker in workers),
        )
        self._samples.append(sample)
        self._publish("sample", _encode(sample))

    async def publish_changes(self) -> None:
        """Send what has changed since the last time to all pages."""
        self._publish_if_changed("workers", WorkersChanged(memory=self._memory(), workers=self._workers()))
        if self._ticks % MODELS_TICKS == 0:
            models = await self._models()
            self._publish_if_changed("models", ModelsChanged(models=models, default_model=self._config().default_model))
        self._ticks += 1
        if requests := self._changed_requests():
            self._publish("requests", _encode(RequestsChanged(requests=requests)))

    async def snapshot(self) -> Snapshot:
        """Return everything."""
        models = await self._models()
        return Snapshot(
            instance=self._instance,
            version=__version__,
            time=time.time(),
            started_at=self._started_at,
            default_model=self._config().default_model,
            memory=self._memory(),
            models=models,
            workers=self._workers(),
            requests=self._requests(),
            history=self._history(),
        )

    async def subscribe(self) -> AsyncGenerator[Event]:
        """Yield a snapshot, then changes. Ends when the monitor is closed or the page reads too slowly."""
        snapshot = await self.snapshot()
        # Nothing is awaited from here on, so that the page misses no change, and pages that open at once are limited.
        if self._closed:
            return
        if len(self._pages) >= MAX_PAGES:
            self._disconnect(self._pages[0])
        page: asyncio.Queue[Event | None] = asyncio.Queue()
        if not self._pages:
            self._finished_count = self._activity.finished_count
        self._pages.append(page)
        self._opened.set()
        try:
            yield "snapshot", _encode(snapshot)
            while (event := await page.get()) is not None:
                yield event
        finally:
            with contextlib.suppress(ValueError):
                self._pages.remove(page)

    def close(self) -> None:
        """Disconnect every page, and accept no more."""
        self._closed = True
        for page in [*self._pages]:
            self._disconnect(page)

    def _publish_if_changed(self, name: str, value: object) -> None:
        data = _encode(value)
        if self._published.get(name) != data:
            self._published[name] = data
            self._publish(name, data)

    def _publish(self, name: str, data: bytes) -> None:
        for page in [*self._pages]:
            if page.qsize() >= MAX_UNREAD:
                self._disconnect(page)
            else:
                page.put_nowait((name, data))

    def _disconnect(self, page: asyncio.Queue[Event | None]) -> None:
        self._pages.remove(page)
        page.put_nowait(None)

    def _memory(self) -> Memory:
        budget = self._pool.budget
        return Memory(budget_bytes=budget.total_bytes, used_bytes=budget.used_bytes)

    def _workers(self) -> list[WorkerEntry]:
        tokens = self._metrics.cached_prompt_tokens()
        return [views.worker_entry(worker, tokens) for worker in self._pool.snapshot()]

    async def _models(self) -> list[ModelEntry]:
        records, budget = await self._catalog.records(), self._pool.budget.total_bytes
        return [views.model_entry(record, self._pool.needs_bytes(record), budget) for record in records]

    def _requests(self) -> list[RequestEntry]:
        now = self._activity.clock()
        requests = [*self._activity.finished(), *self._activity.running]
        requests.sort(key=lambda request: request.started_at, reverse=True)
        return [views.request_entry(request, now) for request in requests]

    def _changed_requests(self) -> list[RequestEntry]:
        """Return the running requests, and those that have finished since the last call."""
        now, after = self._activity.clock(), self._finished_count
        self._finished_count = self._activity.finished_count
        changed = [*self._activity.finished(after), *self._activity.running]
        return [views.request_entry(request, now) for request in changed]

    def _history(self) -> History:
        return History(
            interval_seconds=SAMPLE_SECONDS,
            time=[sample.time for sample in self._samples],
            tokens_per_second=[sample.tokens_per_second for sample in self._samples],
            memory_bytes=[sample.memory_bytes for sample in self._samples],
            in_flight=[sample.in_flight for sample in self._samples],
            waiting=[sample.waiting for sample in self._samples],
        )
