"""Running the parts: every round measures all of them, and each party in turn."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tests import daemons
from tests.bench import parts, servers, startup
from tests.bench.figures import OURS, RAW, THEIRS
from tests.bench.models import STARTER, Model
from tests.bench.parts import Figures, Measurement, Place
from tests.bench.prompts import Prompts
from tests.bench.results import Results

BOTH: Mapping[str, Measurement] = {
    "decode": parts.decode,
    "streams": parts.streams,
    "prefix": parts.prefix,
    "stall": parts.stall,
}
"""Measured of either server."""

OURS_ONLY: Mapping[str, Measurement] = {"seeded": parts.seeded, "constrained": parts.constrained}

STARTS = 7
IDLE_SECONDS = 0.2

TURNS = {"decode": 2}
"""Turns a round of the parts that are quick and whose aims are narrow; the others have one."""

Work = Mapping[str, Mapping[str, Callable[[], Figures]]]
"""By part, what measures each party."""


def compare(home: Path, model: Model, chosen: set[str], rounds: int, results: Results) -> None:
    """Measure the chosen parts on `model`, with all parties up at once."""
    folder = home / "models" / model.name
    prompts = Prompts(folder)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(daemons.running(home))
        places = {
            OURS: Place(stack.enter_context(servers.ours(daemon, model)), model, prompts),
            THEIRS: Place(stack.enter_context(servers.theirs(home, model)), model, prompts),
        }
        raw = stack.enter_context(servers.raw(home, model))
        for party, place in places.items():
            say(f"{model.name}: {party} warms up")
            asyncio.run(parts.warm_up(place))
        parts.decode_raw(raw, model, prompts)
        _take_turns(model.name, _work(places, raw, chosen), rounds, results)


def measure_startup(home: Path, results: Results) -> None:
    """Measure our daemon's start, and what it does first."""
    for at in range(STARTS):
        _measure(STARTER, "startup", OURS, lambda: startup.start(home), f"start {at + 1}", results)
    with daemons.running(home) as daemon:
        for at in range(STARTS):
            _measure(STARTER, "startup", OURS, lambda: startup.use(home, daemon), f"load {at + 1}", results)


def say(text: str) -> None:
    """Tell those who wait."""
    print(text, file=sys.stderr, flush=True)


def _work(places: Mapping[str, Place], raw: servers.Raw, chosen: set[str]) -> Work:
    def by(measurement: Measurement, place: Place) -> Callable[[], Figures]:
        return lambda: asyncio.run(measurement(place))

    work: dict[str, dict[str, Callable[[], Figures]]] = {}
    for name, measurement in BOTH.items():
        work[name] = {party: by(measurement, place) for party, place in places.items()}
    for name, measurement in OURS_ONLY.items():
        work[name] = {OURS: by(measurement, places[OURS])}
    ours = places[OURS]
    work["decode"][RAW] = lambda: parts.decode_raw(raw, ours.model, ours.prompts)
    return {name: parties for name, parties in work.items() if name in chosen}


def _take_turns(model: str, work: Work, rounds: int, results: Results) -> None:
    """Who is first changes from turn to turn; a part that failed is left out from then on."""
    for at, (name, parties) in itertools.product(range(rounds), work.items()):
        turns = [list(parties)[:: 1 if turn % 2 == 0 else -1] for turn in range(at, at + TURNS.get(name, 1))]
        for party in itertools.chain.from_iterable(turns):
            if (model, name) not in results.failures:
                _measure(model, name, party, parties[party], f"round {at + 1}", results)


def _measure(model: str, part: str, party: str, work: Callable[[], Figures], when: str, results: Results) -> None:
    results.busy.append(psutil.cpu_percent(IDLE_SECONDS) / 100)
    try:
        figures = work()
    except Exception as error:  # noqa: BLE001  one part that fails must not cost the others
        results.fail(model, part, f"{party}: {type(error).__name__}: {error}")
        say(f"{model}: {when}, {part}, {party}: failed: {error}")
        return
    results.add(model, part, party, figures)
    say(f"{model}: {when}, {part}, {party}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
