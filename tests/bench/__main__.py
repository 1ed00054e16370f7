"""`make bench`: compare osaurusd with `mlx_lm.server` on one machine, with the same models and BLAS library.

Progress goes to standard error, the table to standard output. Compare figures within a run only, not between runs.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from osaurusd.pool.config import find_blas
from tests.bench import imports, report, rounds
from tests.bench.models import MODELS
from tests.bench.report import Results

GROUPS = {
    "startup": {"startup"},
    "decode": {"decode"},
    "streams": {"streams"},
    "prefix": {"prefix"},
    "stall": {"stall"},
    "mixed": {"seeded", "constrained"},
    "protocols": {"protocols"},
    "decisions": {"decisions"},
    "images": {"images"},
    "imports": {"imports"},
    "bodies": {"bodies"},
}
"""Measurements by the names that `--only` accepts."""

WITHOUT_GENERATION = {"imports", "bodies"}
"""Measurements that generate nothing."""

DEFAULT_ROUNDS = 3


def main() -> None:
    options = parse_arguments()
    selected = set[str]().union(*(GROUPS[group] for group in options.only))
    if selected - WITHOUT_GENERATION and sys.platform == "linux" and find_blas("auto") is None:
        sys.exit("Generation is too slow to be measured without OpenBLAS; run: apt install libopenblas0-pthread")
    results = Results()
    # Exit through the context managers that stop child processes, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "imports" in selected:
        with temporary_home() as home:
            rounds.measure_imports(home, options.import_megabytes, options.rounds, results)
    if "bodies" in selected:
        with temporary_home() as home:
            make_models(home, "--tiny")
            rounds.measure_bodies(home, options.rounds, results)
    if selected - WITHOUT_GENERATION:
        with temporary_home() as home:
            make_models(home, *(["--images"] if "images" in selected else []))
            measure_models(home, selected, options, results)
    print(json.dumps(report.build(results), indent=2) if options.json else report.render(results))


def measure_models(home: Path, selected: set[str], options: argparse.Namespace, results: Results) -> None:
    if "startup" in selected:
        rounds.measure_startup(home, results)
    if "images" in selected:
        rounds.measure_images(home, options.rounds, results)
    if selected - {"startup", "images", *WITHOUT_GENERATION}:
        for model in options.model:
            rounds.compare(home, MODELS[model], selected, options.rounds, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    groups, models = ", ".join(GROUPS), ", ".join(MODELS)
    parser.add_argument("--only", type=list_of(GROUPS), default=list(GROUPS), metavar="GROUPS", help=groups)
    parser.add_argument("--model", type=list_of(MODELS), default=list(MODELS), metavar="MODELS", help=models)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument(
        "--import-megabytes",
        type=int,
        default=imports.DEFAULT_MEGABYTES,
        metavar="N",
        help="size of the file to import  [default: %(default)s]",
    )
    parser.add_argument("--json", action="store_true", help="print the values of all rounds as one JSON document")
    return parser.parse_args()


def list_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser for comma-separated names."""

    def parse(text: str) -> list[str]:
        selected = text.split(",")
        for name in selected:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(names)}")
        return selected

    return parse


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """Create a home directory, and delete it at the end."""
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def make_models(home: Path, *options: str) -> None:
    """Create the models in a home directory. The options are those of `tests.bench.make_models`."""
    rounds.print_progress("creating models")
    subprocess.run([sys.executable, "-m", "tests.bench.make_models", str(home / "models"), *options], check=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
