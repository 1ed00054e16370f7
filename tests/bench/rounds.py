"""Running the measurements. Each round runs all of them, with the programs alternating."""

import asyncio
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tests import daemons
from tests.bench import bodies, images, imports, measurements, servers
from tests.bench.decisions import decisions
from tests.bench.figures import COPY, OURS, RAW, THEIRS
from tests.bench.measurements import Figures, Measurement, Target
from tests.bench.models import IMPORTED, STARTER, TINY, VISION, Model
from tests.bench.prompts import Prompts
from tests.bench.protocols import protocols
from tests.bench.report import Results

BOTH_SERVERS: Mapping[str, Measurement] = {
    "decode": measurements.decode,
    "streams": measurements.streams,
    "prefix": measurements.prefix,
    "stall": measurements.stall,
}

OURS_ONLY: Mapping[str, Measurement] = {
    "seeded": measurements.seeded,
    "constrained": measurements.constrained,
    "protocols": protocols,
    "decisions": decisions,
}

STARTS = 7
IDLE_SECONDS = 0.2

RUNS_PER_ROUND = {"decode": 2}
"""More than one run per round, for quick measurements with narrow goals."""

Work = Mapping[str, Mapping[str, Callable[[], Figures]]]
"""By measurement and program, the function to call."""


def compare(home: Path, model: Model, selected: set[str], rounds: int, results: Results) -> None:
    """Run the selected measurements with a model that all programs have loaded. Programs without one do not run."""
    prompts = Prompts(home / "models" / model.name)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(daemons.running(home))
        targets = {OURS: Target(stack.enter_context(servers.osaurusd(daemon, model)), model, prompts)}
        if selected & BOTH_SERVERS.keys():
            targets[THEIRS] = Target(stack.enter_context(servers.mlx_lm_server(home, model)), model, prompts)
        raw = stack.enter_context(servers.mlx_lm_raw(home, model)) if "decode" in selected else None
        for program, target in targets.items():
            print_progress(f"{model.name}: warming up {program}")
            asyncio.run(measurements.warm_up(target))
        if raw is not None:
            measurements.decode_raw(raw, model, prompts)
        run_rounds(model.name, build_work(targets, raw, selected), rounds, results)


def measure_images(home: Path, rounds: int, results: Results) -> None:
    """Run the measurements of images with the model for them."""
    with daemons.running(home) as daemon, servers.osaurusd(daemon, VISION) as server:
        target = Target(server, VISION, Prompts(home / "models" / VISION.name))
        print_progress(f"{VISION.name}: warming up")
        asyncio.run(measurements.warm_up(target))
        work = {name: {OURS: bind(measurement, target)} for name, measurement in images.MEASUREMENTS.items()}
        run_rounds(VISION.name, work, rounds, results)


def measure_imports(home: Path, megabytes: int, rounds: int, results: Results) -> None:
    """Measure the import of a GGUF file of about this size, and copying and hashing it."""
    print_progress("creating files")
    large, small = home / f"{IMPORTED}.gguf", home / "small.gguf"
    imports.write_source(large, imports.large(megabytes))
    imports.write_source(small, imports.SMALL)
    with daemons.running(home) as daemon:
        work = {OURS: lambda: imports.import_files(daemon, large, small), COPY: lambda: imports.copy_and_hash(large)}
        for run in work.values():
            run()
        run_rounds(IMPORTED, {"imports": work}, rounds, results)


def measure_bodies(home: Path, rounds: int, results: Results) -> None:
    """Measure how long large request bodies block the daemon's event loop."""
    with daemons.running(home) as daemon, servers.osaurusd(daemon, TINY) as server:
        work = {name: {OURS: functools.partial(bodies.measure, server, body)} for name, body in bodies.BODIES.items()}
        run_rounds(TINY.name, work, rounds, results)


def measure_startup(home: Path, results: Results) -> None:
    """Measure the daemon's start-up, listing models, and loading a model."""
    for number in range(1, STARTS + 1):
        measure(STARTER, "startup", OURS, lambda: measurements.start_daemon(home), f"start {number}", results)
    with daemons.running(home) as daemon:
        for number in range(1, STARTS + 1):
            measure(STARTER, "startup", OURS, lambda: measurements.use_daemon(home, daemon), f"load {number}", results)


def build_work(targets: Mapping[str, Target], raw: servers.RawProcess | None, selected: set[str]) -> Work:
    ours = targets[OURS]
    work: dict[str, dict[str, Callable[[], Figures]]] = {}
    for name, measurement in BOTH_SERVERS.items():
        work[name] = {program: bind(measurement, target) for program, target in targets.items()}
    for name, measurement in OURS_ONLY.items():
        work[name] = {OURS: bind(measurement, ours)}
    if raw is not None:
        work["decode"][RAW] = lambda: measurements.decode_raw(raw, ours.model, ours.prompts)
    return {name: programs for name, programs in work.items() if name in selected}


def bind(measurement: Measurement, target: Target) -> Callable[[], Figures]:
    return lambda: asyncio.run(measurement(target))


def run_rounds(model: str, work: Work, rounds: int, results: Results) -> None:
    """Run all measurements. The order of programs alternates; a measurement that failed is not repeated."""
    for number, (name, programs) in itertools.product(range(rounds), work.items()):
        for run in range(number, number + RUNS_PER_ROUND.get(name, 1)):
            for program in list(programs)[:: 1 if run % 2 == 0 else -1]:
                if (model, name) not in results.failures:
                    measure(model, name, program, programs[program], f"round {number + 1}", results)


def measure(
    model: str, measurement: str, program: str, run: Callable[[], Figures], label: str, results: Results
) -> None:
    results.busy.append(psutil.cpu_percent(IDLE_SECONDS) / 100)
    try:
        figures = run()
    except Exception as error:  # noqa: BLE001  one failed measurement must not end the others
        results.fail(model, measurement, f"{program}: {type(error).__name__}: {error}")
        print_progress(f"{model}: {label}, {measurement}, {program}: failed: {error}")
        return
    results.add(model, measurement, program, figures)
    values = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print_progress(f"{model}: {label}, {measurement}, {program}: {values}")


def print_progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
