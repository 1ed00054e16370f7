"""The monitor sends each page a snapshot, then only what changes, and keeps nothing without bound."""

import asyncio
import contextlib
import json
import time

import msgspec
import pytest
from msgspec.structs import replace

from osaurusd.activity import MAX_FINISHED
from osaurusd.config import Config
from osaurusd.inference.events import Completed, Usage
from osaurusd.pool.snapshot import MemoryBudget, WorkerSnapshot
from osaurusd.ui.monitor import MAX_PAGES, MAX_SAMPLES, MAX_UNREAD, MODELS_TICKS
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.models import disk

READY = WorkerSnapshot(key="org/one", name="one", state=WorkerState.READY, held_bytes=3 * 2**20, needs_bytes=7)


@pytest.fixture
async def pages(monitored):
    """Opens pages; each is an iterator over its events."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_page():
            page = await stack.enter_async_context(contextlib.aclosing(monitored.monitor.subscribe()))
            assert (await anext(page))[0] == "snapshot"
            return page

        yield open_page


async def read(page):
    """Return the name and the decoded data of the next event."""
    async with asyncio.timeout(60):
        name, data = await anext(page)
    return name, json.loads(data)


async def read_published(monitor, page):
    """Return the events that the monitor publishes now."""
    await monitor.publish_changes()
    monitor.sample()
    events = []
    while (event := await read(page))[0] != "sample":
        events.append(event)
    return dict(events)


async def test_idle_page_receives_nothing_after_the_first_changes(monitored, pages):
    page = await pages()
    monitored.pool.workers = [READY]
    await read_published(monitored.monitor, page)

    for _ in range(2 * MODELS_TICKS):
        assert await read_published(monitored.monitor, page) == {}


async def test_changed_workers_are_sent_with_cache_figures(monitored, pages):
    page = await pages()
    monitored.pool.workers = [READY]
    usage = Usage(prompt_tokens=100, cached_tokens=60, completion_tokens=5)
    monitored.metrics.for_worker("one").count_completed(Completed(usage=usage))
    (worker,) = (await read_published(monitored.monitor, page))["workers"]["workers"]

    assert (worker["model"], worker["state"], worker["memory_bytes"]) == ("one", "ready", 3 * 2**20)
    assert (worker["prompt_tokens"], worker["cached_tokens"]) == (100, 60)

    monitored.pool.workers = []
    assert (await read_published(monitored.monitor, page))["workers"]["workers"] == []


async def test_end_of_the_keep_alive_is_a_moment(monitored):
    before = time.time()
    monitored.pool.workers = [replace(READY, idle_left_seconds=90.0)]
    (worker,) = (await monitored.monitor.snapshot()).workers
    assert before + 89 <= worker.unloads_at <= time.time() + 91


async def test_models_are_sent_when_they_change_on_disk(monitored, pages):
    page = await pages()
    await read_published(monitored.monitor, page)
    disk.write_hub(monitored.catalog.hub, "org/added", disk.model())
    await monitored.catalog.refresh()
    monitored.config = Config(default_model="added")

    seen = {}
    for _ in range(MODELS_TICKS):
        seen |= await read_published(monitored.monitor, page)
    assert "added" in [model["name"] for model in seen["models"]["models"]]
    assert seen["models"]["default_model"] == "added"


async def test_model_larger_than_the_budget_does_not_fit(monitored):
    monitored.pool.budget = MemoryBudget(total_bytes=1, used_bytes=0)
    (model,) = (await monitored.monitor.snapshot()).models
    assert (model.fits, model.needs_bytes > 1) == (False, True)


async def test_running_and_finished_requests_are_sent_once(monitored, pages):
    page = await pages()
    with monitored.activity.track_model("one") as request:
        request.prompt_processed(10, 4)
        request.token_generated(request.started_at + 0.5)
        (running,) = (await read_published(monitored.monitor, page))["requests"]["requests"]
        request.output_completed(10, 4, 2, 0.1)
    (finished,) = (await read_published(monitored.monitor, page))["requests"]["requests"]

    assert (running["state"], running["output_tokens"], running["first_token_seconds"]) == ("running", 1, 0.5)
    assert (finished["state"], finished["output_tokens"], finished["tokens_per_second"]) == ("completed", 2, 20.0)
    assert finished["id"] == running["id"]
    assert await read_published(monitored.monitor, page) == {}


async def test_new_page_gets_the_requests_in_its_snapshot_only(monitored, pages):
    with monitored.activity.track_model("one"):
        pass
    page = await pages()
    assert "requests" not in await read_published(monitored.monitor, page)
    assert [request.model for request in (await monitored.monitor.snapshot()).requests] == ["one"]


async def test_history_and_request_list_are_bounded(monitored):
    for _ in range(MAX_SAMPLES + 10):
        monitored.monitor.sample()
    for _ in range(MAX_FINISHED + 10):
        with monitored.activity.track_model("one"):
            pass
    snapshot = await monitored.monitor.snapshot()

    assert {len(column) for column in msgspec.structs.astuple(snapshot.history)[1:]} == {MAX_SAMPLES}
    assert MAX_SAMPLES * snapshot.history.interval_seconds == 3600
    assert len(snapshot.requests) == MAX_FINISHED


async def test_page_that_does_not_read_is_disconnected(monitored, pages):
    slow, fast = await pages(), await pages()
    for _ in range(MAX_UNREAD + 1):
        monitored.monitor.sample()
        assert (await read(fast))[0] == "sample"

    assert len([event async for event in slow]) == MAX_UNREAD
    monitored.monitor.sample()
    assert (await read(fast))[0] == "sample"


async def test_number_of_pages_is_bounded(monitored, pages):
    first = await pages()
    for _ in range(MAX_PAGES):
        last = await pages()
    assert [event async for event in first] == []
    monitored.monitor.sample()
    assert (await read(last))[0] == "sample"


async def test_number_of_pages_that_open_at_once_is_bounded(monitored):
    pages = [monitored.monitor.subscribe() for _ in range(MAX_PAGES + 2)]
    await asyncio.gather(*map(anext, pages))
    monitored.monitor.sample()
    monitored.monitor.close()
    counts = [len([event async for event in page]) for page in pages]
    assert sorted(counts) == [0, 0, *[1] * MAX_PAGES]


async def test_closing_the_monitor_ends_every_page(monitored, pages):
    page = await pages()
    monitored.monitor.close()
    assert [event async for event in page] == []
    assert [event async for event in monitored.monitor.subscribe()] == []


async def test_reopened_page_starts_with_a_new_snapshot(monitored, pages):
    await pages()
    monitored.pool.workers = [READY]
    async with contextlib.aclosing(monitored.monitor.subscribe()) as page:
        name, snapshot = await read(page)
    assert (name, [worker["model"] for worker in snapshot["workers"]]) == ("snapshot", ["one"])


async def test_pages_receive_samples_and_changes_while_it_runs(monitored, pages):
    page = await pages()
    task = asyncio.create_task(monitored.monitor.run())
    try:
        seen = {(await read(page))[0] for _ in range(3)}
    finally:
        task.cancel()
    assert seen == {"sample", "workers", "models"}


async def test_failure_to_publish_is_logged_and_does_not_end_the_monitor(monitored, pages, monkeypatch):
    failed = asyncio.Event()

    def fail():
        failed.set()
        raise ValueError("failed")

    page = await pages()
    monkeypatch.setattr(monitored.metrics, "cached_prompt_tokens", fail)
    monkeypatch.setattr("osaurusd.ui.monitor.TICK_SECONDS", 0.01)
    task = asyncio.create_task(monitored.monitor.run())
    try:
        async with asyncio.timeout(60):
            await failed.wait()
            monkeypatch.undo()
            while (await read(page))[0] != "workers":
                pass
    finally:
        task.cancel()
