"""The behavior of launchd that the service relies on.

The tests run against the fake launchd, and on a Mac with a logged-in user against the real one. They define which
behavior the fake must reproduce.
"""

import contextlib
import os
import plistlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from osaurusctl.service.launchctl import JobInfo, parse_job
from tests import macs
from tests.macs import LABEL, SCALE, Mac

# With the fake launchd, these tests only check the fake.
pytestmark = [] if macs.REAL else [pytest.mark.long]

TIMEOUT_SECONDS = 60
FOREVER = ["/bin/sh", "-c", "while :; do sleep 1; done"]
SECOND = 1 if macs.REAL else SCALE


@pytest.fixture
def mac() -> Iterator[Mac]:
    with macs.mac("gui") as account:
        account.plist.parent.mkdir(parents=True, exist_ok=True)
        yield account
        account.launchctl("bootout", account.target)
        account.plist.unlink(missing_ok=True)


def write_plist(mac: Mac, *arguments: str, **keys: Any) -> Path:
    tree = {"Label": LABEL, "ProgramArguments": list(arguments), "RunAtLoad": True, "ThrottleInterval": 1, **keys}
    mac.plist.write_bytes(plistlib.dumps(tree))
    mac.plist.chmod(0o644)
    return mac.plist


def load_job(mac: Mac, *arguments: str, **keys: Any) -> None:
    write_plist(mac, *arguments, **keys)
    result = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))
    assert (0, "") == (result.returncode, result.stderr)


def query_job(mac: Mac) -> JobInfo | None:
    result = mac.launchctl("print", mac.target)
    return parse_job(result.stdout) if result.returncode == 0 else None


def wait_until(mac: Mac, condition: Callable[[JobInfo | None], bool]) -> JobInfo | None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition(job := query_job(mac)):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def wait_until_running(mac: Mac) -> JobInfo:
    job = wait_until(mac, lambda job: job is not None and job.state == "running" and job.pid is not None)
    assert job is not None
    return job


def test_loaded_job_runs_and_its_definition_is_printed(mac: Mac) -> None:
    load_job(mac, *FOREVER, ProcessType="Interactive", ExitTimeOut=7)
    job = wait_until_running(mac)

    assert FOREVER == job.blocks["arguments"]
    assert ("7", "1") == (job.fields["exit timeout"], job.fields["runs"])
    assert job.fields["spawn type"].startswith("interactive")
    assert job.last_exit is None


def test_printed_environment_contains_the_variables_of_the_file(mac: Mac) -> None:
    """launchd adds others, which differ between versions of macOS."""
    load_job(mac, *FOREVER, EnvironmentVariables={"EXAMPLE": "a => b"})

    lines = wait_until_running(mac).blocks["environment"]
    assert "EXAMPLE => a => b" in lines
    assert f"XPC_SERVICE_NAME => {LABEL}" in lines


def test_changed_file_has_no_effect_until_it_is_loaded_again(mac: Mac) -> None:
    load_job(mac, *FOREVER)
    write_plist(mac, "/bin/sh", "-c", "exit 1")

    assert FOREVER == wait_until_running(mac).blocks["arguments"]


def test_bootstrap_of_a_loaded_label_fails_with_a_generic_error(mac: Mac) -> None:
    load_job(mac, *FOREVER)
    again = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))

    assert again.returncode in (5, 37)
    assert again.stderr.startswith(f"Bootstrap failed: {again.returncode}: ")


@macs.fake_only
@pytest.mark.parametrize("fault", ["missing", "writable", "broken", "unlabelled"])
def test_bootstrap_of_an_invalid_file_fails_with_a_generic_error(mac: Mac, fault: str) -> None:
    write_plist(mac, *FOREVER)
    match fault:
        case "missing":
            mac.plist.unlink()
        case "writable":
            mac.plist.chmod(0o664)
        case "broken":
            mac.plist.write_bytes(mac.plist.read_bytes()[:-20])
        case "unlabelled":
            mac.plist.write_bytes(plistlib.dumps({"ProgramArguments": FOREVER}))
    result = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))

    message = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n"
    assert (5, message) == (result.returncode, result.stderr)


def test_bootout_returns_before_the_job_has_exited(mac: Mac) -> None:
    """The job exits when a file exists. Until then its label cannot be loaded."""
    ready, may_exit = mac.root / "ready", mac.root / "may exit"
    wait = f"while [ ! -e '{may_exit}' ]; do sleep 0.1; done; exit 0"
    load_job(mac, "/bin/sh", "-c", f"trap '' TERM; : > '{ready}'; {wait}", ExitTimeOut=600)
    wait_until(mac, lambda _: ready.exists())
    assert 0 == mac.launchctl("bootout", mac.target).returncode
    job = query_job(mac)
    assert job is not None
    assert "SIGTERMed" == job.state
    assert 5 == mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist)).returncode

    may_exit.touch()
    wait_until(mac, lambda job: job is None)
    assert 113 == mac.launchctl("print", mac.target).returncode


def test_job_that_ignores_sigterm_is_killed(mac: Mac) -> None:
    ready = mac.root / "ready"
    load_job(mac, "/bin/sh", "-c", f"trap '' TERM; : > '{ready}'; while :; do sleep 0.1; done", ExitTimeOut=1)
    wait_until(mac, lambda _: ready.exists())
    assert 0 == mac.launchctl("bootout", mac.target).returncode

    wait_until(mac, lambda job: job is None)


@pytest.mark.parametrize(("code", "restarts"), [(0, False), (3, True)])
def test_job_is_restarted_only_after_a_failure(mac: Mac, code: int, restarts: bool) -> None:
    load_job(mac, "/bin/sh", "-c", f"exit {code}", KeepAlive={"SuccessfulExit": False})
    if restarts:
        job = wait_until(mac, lambda job: job is not None and (job.number("runs") or 0) >= 3)
        assert job is not None
        assert "3" == job.last_exit
    else:
        wait_until(mac, lambda job: job is not None and job.last_exit == "0")
        time.sleep(3 * SECOND)
        job = query_job(mac)
        assert job is not None
        assert (1, "not running") == (job.number("runs"), job.state)


@macs.fake_only
def test_keys_of_keep_alive_are_ored(mac: Mac) -> None:
    """`Crashed: false` restarts the job after exit 0, regardless of `SuccessfulExit`."""
    load_job(mac, "/bin/sh", "-c", "exit 0", KeepAlive={"SuccessfulExit": False, "Crashed": False})
    wait_until(mac, lambda job: job is not None and (job.number("runs") or 0) >= 2)


@macs.fake_only
def test_starts_are_throttled(mac: Mac) -> None:
    before = time.time()
    program = f"import time; open({str(mac.root / 'starts')!r}, 'a').write(f'{{time.time()}}\\n'); raise SystemExit(1)"
    load_job(mac, sys.executable, "-IS", "-c", program, KeepAlive=True, ThrottleInterval=20)
    wait_until(mac, lambda job: job is not None and (job.number("runs") or 0) >= 3)
    starts = [float(line) for line in (mac.root / "starts").read_text().splitlines()]

    # Measured from the first start: a busy machine can delay a start, but not make it earlier.
    assert all(start - before >= number * 20 * SCALE for number, start in enumerate(starts))


def test_standard_error_that_cannot_be_opened_is_exit_code_78(mac: Mac) -> None:
    load_job(mac, *FOREVER, StandardErrorPath=str(mac.root / "missing" / "err"))
    job = wait_until(mac, lambda job: job is not None and job.last_exit is not None)

    assert job is not None
    assert job.last_exit is not None
    assert job.last_exit.startswith("78")


def test_environment_is_minimal(mac: Mac) -> None:
    load_job(
        mac,
        "/bin/sh",
        "-c",
        f"env > '{mac.root}/env.part'; ulimit -n > '{mac.root}/files'; mv '{mac.root}/env.part' '{mac.root}/env'",
    )
    wait_until(mac, lambda _: (mac.root / "env").exists())
    env = dict(line.split("=", 1) for line in (mac.root / "env").read_text().splitlines() if "=" in line)

    assert "/usr/bin:/bin:/usr/sbin:/sbin" == env["PATH"]
    assert LABEL == env["XPC_SERVICE_NAME"]
    assert not any(name.startswith(("OSAURUS", "FAKE", "PYTHON")) for name in env)
    assert "256" == (mac.root / "files").read_text().strip()


def test_kickstart_with_k_replaces_the_process(mac: Mac) -> None:
    load_job(mac, *FOREVER)
    first = wait_until_running(mac).pid
    assert mac.launchctl("kickstart", mac.target).returncode in (0, 37)
    assert first == wait_until_running(mac).pid
    assert 0 == mac.launchctl("kickstart", "-k", mac.target).returncode

    wait_until(mac, lambda job: job is not None and job.pid not in (None, first))


@macs.fake_only
def test_job_that_is_pended_starts_with_a_kickstart(mac: Mac) -> None:
    mac.inject_faults(pended=1)
    load_job(mac, *FOREVER)
    job = query_job(mac)
    assert job is not None
    assert ("not running", "speculative", True) == (
        job.state,
        job.fields["pended nondemand spawn"],
        job.never_ran,
    )
    assert 0 == mac.launchctl("kickstart", mac.target).returncode

    assert not wait_until_running(mac).never_ran


def test_disabled_label_stays_disabled_until_it_is_enabled(mac: Mac) -> None:
    assert 0 == mac.launchctl("disable", mac.target).returncode
    write_plist(mac, *FOREVER)
    rejected = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))
    assert rejected.returncode in (5, 119)
    assert f'"{LABEL}" => disabled' in mac.launchctl("print-disabled", f"gui/{os.getuid()}").stdout
    assert 0 == mac.launchctl("enable", mac.target).returncode

    load_job(mac, *FOREVER)
    wait_until_running(mac)


@pytest.mark.parametrize("verb", [["print"], ["kickstart"], ["kill", "SIGTERM"]])
def test_job_that_is_not_loaded_is_not_found(mac: Mac, verb: list[str]) -> None:
    result = mac.launchctl(*verb, mac.target)

    assert result.returncode in (113, 3)
    assert f'Could not find service "{LABEL}" in domain for user gui: {os.getuid()}' in result.stderr


def test_bootout_of_a_job_that_is_not_loaded_fails(mac: Mac) -> None:
    result = mac.launchctl("bootout", mac.target)

    assert (3, "Boot-out failed: 3: No such process\n") == (result.returncode, result.stderr)


@macs.fake_only
def test_missing_domain_is_an_error() -> None:
    with macs.mac("user") as mac:
        assert 112 == mac.launchctl("print", f"gui/{os.getuid()}").returncode
        assert 125 == mac.launchctl("bootstrap", f"gui/{os.getuid()}", "/x.plist").returncode
        assert "Background\n" == mac.launchctl("managername").stdout


@macs.fake_only
def test_process_group_is_killed_when_its_leader_exits(mac: Mac) -> None:
    load_job(mac, "/bin/sh", "-c", f"sleep 1000 & echo $! > '{mac.root}/child'; wait")
    wait_until(mac, lambda _: (mac.root / "child").exists() and (mac.root / "child").read_text().strip() != "")
    child = int((mac.root / "child").read_text())
    leader = wait_until_running(mac).pid
    assert leader is not None
    os.kill(leader, signal.SIGKILL)
    wait_until(mac, lambda job: job is not None and job.pid is None)

    wait_until(mac, lambda _: not is_alive(child))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
