"""The measurement of large request bodies reports how long they block the event loop."""

import asyncio
import time
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from tests.bench import bodies
from tests.bench.bodies import BODIES, BODY_BYTES, Body
from tests.bench.client import MeasurementError
from tests.bench.figures import OURS
from tests.bench.models import TINY as BENCH_TINY
from tests.bench.report import Results, build_rows
from tests.bench.servers import Server
from tests.conftest import TINY
from tests.osaurusd.http.serve import build_app, serving

BLOCK_SECONDS = 0.2
SMALL = Body("/", dict, error="rejected")

QUICK = {"chat, 4,096 messages", "chat, 1 image"}
"""Models take longer to reject the other bodies."""


@pytest.fixture(autouse=True)
def single_repetition(monkeypatch):
    monkeypatch.setattr(bodies, "REPETITIONS", 1)


async def reject(_):
    return web.json_response({"error": "rejected"})


async def block(_):
    time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251  blocks the event loop
    return web.json_response({"error": "rejected"})


async def show_health(_):
    return web.json_response({"status": "ok"})


async def measure(*routes):
    """Return the figures of a small body sent to a server with these routes."""
    async with serving(build_app(*routes)) as server:
        return await asyncio.to_thread(bodies.measure, Server("127.0.0.1", server.port, TINY), SMALL)


async def test_longest_response_time_includes_the_time_that_a_body_blocks_the_event_loop():
    figures = await measure(("POST", "/", block), ("GET", "/health", show_health))

    # A health check may be sent a little after the event loop is blocked.
    assert figures["during"] >= BLOCK_SECONDS * 1e3 / 2


async def test_failed_health_check_ends_the_measurement():
    with pytest.raises(MeasurementError, match=r"a health check failed: HTTP/1\.1 404"):
        await measure(("POST", "/", reject))


@pytest.mark.parametrize("name", BODIES)
def test_body_has_the_stated_size(name):
    assert len(BODIES[name].encode(TINY)) == pytest.approx(BODY_BYTES, rel=0.02)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in BODIES]
)
def test_daemon_rejects_a_body_after_it_has_processed_it(tiny_daemon, name):
    bodies.measure(server_of(tiny_daemon), BODIES[name])


def test_unexpected_response_to_a_body_ends_the_measurement(tiny_daemon):
    body = Body("/v1/chat/completions", lambda: {"messages": []}, error="this model's context length")

    with pytest.raises(MeasurementError, match=r"expected .* in the response, not"):
        bodies.measure(server_of(tiny_daemon), body)


def test_table_compares_each_body_with_the_idle_daemon():
    results = Results()
    for name in BODIES:
        results.add(BENCH_TINY.name, name, OURS, {"during": 20.0, "idle": 2.0})

    rows = build_rows(results)

    assert [f"4 MB {name}: longest GET /health / idle" for name in BODIES] == [row.figure for row in rows]
    assert {10.0} == {row.ratio for row in rows}


def server_of(daemon):
    address = urlsplit(daemon.url)
    return Server(address.hostname, address.port, TINY)
