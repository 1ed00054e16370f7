"""`make bench`: our daemon and `mlx_lm.server` on one machine, one model, one BLAS, taking turns.

Progress goes to standard error, the table to standard output. Figures of one run compare; those of two runs do not.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import rounds, table
from tests.bench.models import MODELS
from tests.bench.results import Results

GROUPS = {
    "startup": {"startup"},
    "decode": {"decode"},
    "streams": {"streams"},
    "prefix": {"prefix"},
    "stall": {"stall"},
    "mixed": {"seeded", "constrained"},
}
"""By what `--only` calls them, the parts to measure."""

ROUNDS = 3


def main() -> None:
    """Measure what the command line asks for, and print it."""
    options = _options()
    chosen = set[str]().union(*(GROUPS[group] for group in options.only))
    results = Results()
    # As on Ctrl-C: whatever was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _home() as home:
        if "startup" in chosen:
            rounds.measure_startup(home, results)
        if chosen - {"startup"}:
            for model in options.model:
                rounds.compare(home, MODELS[model], chosen, options.rounds, results)
    print(json.dumps(table.document(results), indent=2) if options.json else table.render(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", type=_names(GROUPS), default=list(GROUPS), metavar="PARTS", help=", ".join(GROUPS))
    parser.add_argument("--model", type=_names(MODELS), default=list(MODELS), metavar="MODELS", help=", ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="print every round's values as one JSON document")
    return parser.parse_args()


def _names(known: dict[str, object]):
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return names


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A home that has the models, while the block runs."""
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        rounds.say("making the models")
        subprocess.run([sys.executable, "-m", "tests.bench.folders", str(home / "models")], check=True)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
