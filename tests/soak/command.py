"""What the commands of all soaks have in common."""

import argparse
import random
import signal
import sys
from collections.abc import Callable

DEFAULT_MINUTES = 10.0


def create_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--seed", type=int, help="repeat the random choices of a run, as far as timing allows")
    return parser


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, choose a seed unless there is one, and let SIGTERM end the program in an orderly way."""
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.seed is None:
        options.seed = random.randrange(10**6)
    print_progress(f"seed {options.seed}")
    return options


def run(main: Callable[[], None]) -> None:
    """Run a command."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)


def print_progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
