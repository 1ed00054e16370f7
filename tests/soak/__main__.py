"""`make soak`: run a daemon under mixed, hostile and faulty use, then check it for errors and leaks.

Progress goes to standard error, the report to standard output. The exit code is 1 if a check fails.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak import report, run

DEFAULT_MINUTES = 10.0


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = random.randrange(10**6) if options.seed is None else options.seed
    run.print_progress(f"seed {seed}")
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        evidence = run.soak(home, options.minutes * 60, seed)
    finally:
        if options.keep:
            run.print_progress(f"home directory: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    document = report.build(evidence, options.minutes * 60)
    print(json.dumps(document, indent=2) if options.json else report.render(document))
    sys.exit(1 if document["problems"] else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--seed", type=int, help="repeat the random choices of a run, as far as timing allows")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    parser.add_argument("--keep", action="store_true", help="keep the daemon's home directory with its log")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
