"""`make test-mac`: check osaurusd on this Mac within ten minutes, and write a report that can be attached to an issue.

The service under test has its own label, home directory and port, and everything is removed at the end. Elsewhere, the
same checks run against the fake launchd and on the CPU.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from tests import macs
from tests.mac import engine, service
from tests.mac.checks import QUICK, Check, Report, Run, Scale

PARTS: dict[str, tuple[Check, ...]] = {
    "service": (
        service.restarts,
        service.recovery_from_a_kill,
        service.port_in_use,
        service.access_by_another_user,
        service.doctor,
    ),
    "correctness": (engine.structured_output, engine.greedy_output, engine.memory_of_large_heads),
    "power": (service.power_assertion,),
    "speed": (engine.speed_under_launchd,),
    "loads": (engine.many_loads,),
}
"""The checks by part. Every run begins with the installation and an import, and ends with the removal."""

SETUP: tuple[Check, ...] = (service.installation, service.import_from_downloads)

DEFAULT_REPORT = Path("osaurus-mac-report.json")


def main() -> None:
    options = parse_arguments()
    # Exit through the context manager that removes the service, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    checks = [("setup", check) for check in SETUP]
    checks += [(part, check) for part in options.parts for check in PARTS[part]]
    with macs.mac("gui") as mac:
        run = Run(mac, QUICK if options.quick else Scale())
        for part, check in [*checks, ("removal", service.removal)]:
            report.run(part, check, run, print_progress)
            # After each check, so that there is a report even if the script is interrupted.
            document = report.document()
            options.report.write_text(json.dumps(document, indent=2) + "\n")
    print_progress(f"report: {options.report}")
    sys.exit(0 if document["passed"] else 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mac", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="run every check with little work")
    parser.add_argument("--report", type=Path, default=DEFAULT_REPORT, help="where to write the JSON report")
    return parser.parse_args()


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
