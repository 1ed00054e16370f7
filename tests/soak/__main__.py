"""`make soak`: a daemon under mixed, rude and faulty use, and what it must look like afterwards.

Progress goes to standard error, the table to standard output; the exit code is 1 if anything is wrong.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak import run, table

MINUTES = 10.0


def main() -> None:
    """Soak as the command line asks for."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = random.randrange(10**6) if options.seed is None else options.seed
    run.say(f"seed {seed}")
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        evidence = run.soak(home, options.minutes * 60, seed)
    finally:
        if options.keep:
            run.say(f"its home is {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    told = table.document(evidence, options.minutes * 60)
    print(json.dumps(told, indent=2) if options.json else table.render(told))
    sys.exit(1 if told["wrong_with"] else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, help="what chance is; as far as the machine allows, a seed repeats a soak")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    parser.add_argument("--keep", action="store_true", help="leave the daemon's home and its log behind")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
