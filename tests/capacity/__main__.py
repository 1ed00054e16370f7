"""`python -m tests.capacity`: print how many users one host serves, from measured figures, and what a split needs.

Without arguments, print only the tables for models that are split over several hosts.
"""

import argparse
from pathlib import Path

from tests.capacity.figures import Figures
from tests.capacity.report import HOSTS, kind_table, network_table, speed_table, split_table, user_table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.capacity", description=__doc__)
    parser.add_argument("bench", type=Path, nargs="?", help="reports of `osaurusctl bench --json`, one on each line")
    parser.add_argument("model", type=Path, nargs="?", help="the output of `osaurusctl show --json`")
    parser.add_argument("--memory", type=float, default=48.0, help="gigabytes for the model (48)")
    parser.add_argument("--users", type=int, default=1000, help="users of all hosts together (1000)")
    parser.add_argument("--hosts", type=int, default=HOSTS, help=f"hosts over which a model is split ({HOSTS})")
    options = parser.parse_args()
    tables = [split_table(), network_table(options.hosts), speed_table(options.hosts)]
    if options.bench and options.model:
        figures = Figures.load(options.bench, options.model)
        tables = [kind_table(), user_table(figures, int(options.memory * 1e9), options.users), *tables]
    elif options.bench:
        parser.error("the details of the model are missing")
    for table in tables:
        print(*table, "", sep="\n")


if __name__ == "__main__":
    main()
