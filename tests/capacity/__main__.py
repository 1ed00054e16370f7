"""`python -m tests.capacity`: print how many users one host serves, from measured figures."""

import argparse
from pathlib import Path

from tests.capacity.figures import Figures
from tests.capacity.report import kind_table, network_table, split_table, user_table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.capacity", description=__doc__)
    parser.add_argument("bench", type=Path, help="reports of `osaurusctl bench --json`, one on each line")
    parser.add_argument("model", type=Path, help="the output of `osaurusctl show --json`")
    parser.add_argument("--memory", type=float, default=48.0, help="gigabytes for the model (48)")
    parser.add_argument("--users", type=int, default=1000, help="users of all hosts together (1000)")
    options = parser.parse_args()
    figures = Figures.load(options.bench, options.model)
    users = user_table(figures, int(options.memory * 1e9), options.users)
    for table in (kind_table(), users, split_table(), network_table()):
        print(*table, "", sep="\n")


if __name__ == "__main__":
    main()
