"""Drift of a launchd job, from the output of `launchctl print`."""

import pytest

from osaurusctl.service import plist
from osaurusctl.service.job import Job, Mode
from osaurusctl.service.launchd import Launchd
from osaurusctl.service.manager import Result

LABEL = "ai.osaurus.osaurusd"


@pytest.fixture
def find_drift(tmp_path):
    """Install a file with `OSAURUS_HOME`, and return the drift for these lines of the loaded job's environment."""
    job = Job(tmp_path / "osaurusd", tmp_path, tmp_path / "logs", env={"OSAURUS_HOME": "/a b"})
    tree = plist.render(job, LABEL)
    service_file = tmp_path / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    service_file.parent.mkdir(parents=True)
    service_file.write_bytes(plist.encode(tree))
    variables = [f"{name} => {value}" for name, value in tree["EnvironmentVariables"].items()]

    def find(added=(), missing=None):
        lines = [line for line in [*variables, *added] if missing is None or not line.startswith(missing)]
        block = "".join(f"\t\t{line}\n" for line in lines)
        output = f"gui/501/{LABEL} = {{\n\tstate = running\n\tenvironment = {{\n{block}\t}}\n\tpid = 4711\n}}\n"

        def run(command, _):
            return Result(0, output if command[1:3] == ["print", f"gui/501/{LABEL}"] else "")

        return Launchd(run, LABEL, Mode.LOGIN, 501, tmp_path).status().drift

    return find


@pytest.mark.parametrize(
    "added",
    [(), [f"XPC_SERVICE_NAME => {LABEL}"], ["OSLogRateLimit => 64", f"XPC_SERVICE_NAME => {LABEL}", "NEW => x"]],
)
def test_variables_that_launchd_adds_are_not_drift(find_drift, added):
    assert [] == find_drift(added)


def test_missing_and_changed_variables_are_drift(find_drift):
    drift = ["the loaded job differs from the file: environment"]

    assert drift == find_drift(missing="OSAURUS_HOME")
    assert drift == find_drift(missing="OSAURUS_HOME", added=["OSAURUS_HOME => /a"])
