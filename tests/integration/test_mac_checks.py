"""`make test-mac` against the fake launchd: its checks pass, and its report says what failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import macs
from tests.mac import checks
from tests.mac.checks import Report, Skipped


def passing(_run: object) -> checks.Details:
    return {"seconds": 1}


def failing(_run: object) -> checks.Details:
    checks.expect(False, "it took 31 s")
    return {}


def skipped(_run: object) -> checks.Details:
    raise Skipped("requires pmset")


def test_report_describes_the_machine_and_every_check() -> None:
    report = Report()
    lines: list[str] = []
    for check in (passing, failing, skipped):
        report.run("service", check, None, lines.append)
    document = json.loads(json.dumps(report.document()))

    assert (False, ["failing"]) == (document["passed"], document["failed"])
    assert ["passed", "failed", "skipped"] == [result["result"] for result in document["checks"]]
    assert [{"seconds": 1}, "it took 31 s", "requires pmset"] == [
        result.get("details") or result["reason"] for result in document["checks"]
    ]
    assert {"memory_bytes", "release", "versions"} <= set(document["machine"])
    assert 3 == len(lines)


@pytest.mark.long
@macs.fake_only
def test_all_checks_pass_without_a_mac(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.mac", "--quick", "--report", str(report)]
    # Two daemons of one machine are not equally fast while it is busy with others.
    parts = ["--parts", "service", "correctness", "power", "loads"]
    run = subprocess.run([*command, *parts], cwd=macs.ROOT, capture_output=True, text=True, timeout=280, check=False)

    assert report.exists(), run.stderr
    document = json.loads(report.read_text())
    assert [] == document["failed"], document
    assert {"power_assertion"} >= {check["check"] for check in document["checks"] if check["result"] == "skipped"}
