"""`make soak`: run a daemon under mixed, hostile and faulty use, then check it for errors and leaks.

Progress goes to standard error, the report to standard output. The exit code is 1 if a check fails.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak import command, report, run


def main() -> None:
    parser = command.create_parser("tests.soak", __doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    parser.add_argument("--keep", action="store_true", help="keep the daemon's home directory with its log")
    options = command.start(parser)
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        evidence = run.soak(home, options.minutes * 60, options.seed)
    finally:
        if options.keep:
            command.print_progress(f"home directory: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    document = report.build(evidence, options.minutes * 60)
    print(json.dumps(document, indent=2) if options.json else report.render(document))
    sys.exit(1 if document["problems"] else 0)


if __name__ == "__main__":
    command.run(main)
