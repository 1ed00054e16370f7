"""A daemon with real workers on a system that runs short of memory."""

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from osaurusd.platform.memory import PressureLevel
from tests import daemons
from tests.daemons import Daemon
from tests.integration.residency import (
    ENDLESS,
    REPEATED_TOKEN,
    events,
    get,
    make_models,
    open_chat,
    read_chunks,
    read_metric,
    workers,
)

MODELS = ("idle", "busy", "pinned")


def set_pressure(home: Path, level: PressureLevel) -> None:
    """Change the level; the daemon never reads an incomplete file."""
    new = home / "new-pressure"
    new.write_text(str(level.value))
    new.replace(home / "pressure")


@pytest.fixture
def daemon(home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon that has loaded three models, of which one is pinned."""
    make_models(home, tiny_tokenizer, *MODELS)
    set_pressure(home, PressureLevel.NORMAL)
    with daemons.running(home, module="tests.fakes.pressured_daemon") as daemon:
        daemon.admin("POST", "/v0/pins", {"model": "pinned"})
        for model in MODELS:
            assert 200 == daemon.admin("POST", "/v0/load", {"model": model})[0]
        yield daemon


def cached_tokens(daemon: Daemon, model: str) -> int:
    """Send a chat, always the same; return how many tokens of its prompt were cached."""
    with open_chat(daemon, model, max_tokens=2, logit_bias={REPEATED_TOKEN: 100}) as response:
        count: int = json.load(response)["usage"]["prompt_tokens_details"]["cached_tokens"]
        return count


def test_memory_pressure_drops_caches_and_critical_pressure_ends_idle_models(daemon: Daemon) -> None:
    cached_tokens(daemon, "idle")
    assert cached_tokens(daemon, "idle") > 0
    with (
        open_chat(daemon, "busy", **ENDLESS) as stream,
        daemon.following("GET", "/v0/events?follow=1") as following,
    ):
        read_chunks(stream, 1)
        set_pressure(daemon.home, PressureLevel.WARNING)

        dropped = itertools.islice((event for event in following if event["kind"] == "caches_dropped"), len(MODELS))
        assert {(model, "pressure") for model in MODELS} == {(event["model"], event["cause"]) for event in dropped}
        assert 0 == cached_tokens(daemon, "idle")
        assert set(MODELS) == set(workers(daemon))

        set_pressure(daemon.home, PressureLevel.CRITICAL)

        unloaded = next(event for event in following if event["kind"] == "unloaded")
        assert ("idle", "pressure") == (unloaded["model"], unloaded["cause"])
        assert {"busy", "pinned"} == set(workers(daemon))
        read_chunks(stream, 1)
    value = functools.partial(read_metric, get(daemon, "/metrics")[1])
    assert 4 == value("osaurus_memory_pressure_level")
    assert {2} == {value("osaurus_cache_drops_total", model=model) for model in MODELS}
    assert 1 == value("osaurus_unloads_total", model="idle", cause="pressure")
    assert ["idle"] == [event["model"] for event in events(daemon, "unloaded")]

    set_pressure(daemon.home, PressureLevel.NORMAL)
    daemon.wait_for("memory pressure", count=3)
    assert cached_tokens(daemon, "idle") == 0
    assert cached_tokens(daemon, "idle") > 0
