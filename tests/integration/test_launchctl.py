"""What the service relies on in launchd, said of the stand-in, and on a Mac with a screen of the real one.

Where both may be run, the stand-in has launchd's words and habits only as far as these tests say so.
"""

import os
import plistlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osaurusctl.service.launchctl import Printed, parse
from tests import macs
from tests.macs import LABEL, SCALE, Mac

PATIENCE_SECONDS = 60
FOREVER = ["/bin/sh", "-c", "while :; do sleep 1; done"]
SECOND = 1 if macs.REAL else SCALE

only_stand_in = pytest.mark.skipif(macs.REAL, reason="knobs, logouts and other domains are the stand-in's")


@pytest.fixture
def mac() -> Iterator[Mac]:
    with macs.mac("gui") as account:
        account.plist.parent.mkdir(parents=True, exist_ok=True)
        yield account
        account.launchctl("bootout", account.target)
        account.plist.unlink(missing_ok=True)


def write(mac: Mac, *arguments: str, **keys: Any) -> Path:
    tree = {"Label": LABEL, "ProgramArguments": list(arguments), "RunAtLoad": True, "ThrottleInterval": 1, **keys}
    mac.plist.write_bytes(plistlib.dumps(tree))
    mac.plist.chmod(0o644)
    return mac.plist


def load(mac: Mac, *arguments: str, **keys: Any) -> None:
    write(mac, *arguments, **keys)
    result = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))
    assert (0, "") == (result.returncode, result.stderr)


def look(mac: Mac) -> Printed | None:
    result = mac.launchctl("print", mac.target)
    return parse(result.stdout) if result.returncode == 0 else None


def until(mac: Mac, what: Callable[[Printed | None], bool]) -> Printed | None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what(printed := look(mac)):
        assert time.monotonic() < deadline, printed
        time.sleep(0.02)
    return printed


def running(mac: Mac) -> Printed:
    printed = until(mac, lambda each: each is not None and each.state == "running" and each.pid is not None)
    assert printed is not None
    return printed


def test_a_loaded_job_runs_and_its_definition_is_printed(mac: Mac) -> None:
    load(mac, *FOREVER, ProcessType="Interactive", ExitTimeOut=7)
    printed = running(mac)

    assert FOREVER == printed.blocks["arguments"]
    assert ("7", "1") == (printed.fields["exit timeout"], printed.fields["runs"])
    assert printed.fields["spawn type"].startswith("interactive")
    assert printed.last_exit is None


def test_what_becomes_of_the_file_does_not_matter_until_it_is_loaded_again(mac: Mac) -> None:
    load(mac, *FOREVER)
    write(mac, "/bin/sh", "-c", "exit 1")

    assert FOREVER == running(mac).blocks["arguments"]


def test_a_loaded_label_is_refused_with_a_catch_all(mac: Mac) -> None:
    load(mac, *FOREVER)
    again = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))

    assert again.returncode in (5, 37)
    assert again.stderr.startswith(f"Bootstrap failed: {again.returncode}: ")


@only_stand_in
@pytest.mark.parametrize("fault", ["missing", "writable", "broken", "unlabelled"])
def test_a_file_that_it_does_not_like_is_refused_with_the_same(mac: Mac, fault: str) -> None:
    write(mac, *FOREVER)
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

    words = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n"
    assert (5, words) == (result.returncode, result.stderr)


def test_bootout_answers_before_the_job_has_ended(mac: Mac) -> None:
    """Which it does once there is a file; until then the label cannot be loaded."""
    ready, may_end = mac.root / "ready", mac.root / "may end"
    wait = f"while [ ! -e '{may_end}' ]; do sleep 0.1; done; exit 0"
    load(mac, "/bin/sh", "-c", f"trap '' TERM; : > '{ready}'; {wait}", ExitTimeOut=600)
    until(mac, lambda _: ready.exists())
    assert 0 == mac.launchctl("bootout", mac.target).returncode
    printed = look(mac)
    assert printed is not None
    assert "SIGTERMed" == printed.state
    assert 5 == mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist)).returncode

    may_end.touch()
    until(mac, lambda each: each is None)
    assert 113 == mac.launchctl("print", mac.target).returncode


def test_what_does_not_end_in_time_is_killed(mac: Mac) -> None:
    ready = mac.root / "ready"
    load(mac, "/bin/sh", "-c", f"trap '' TERM; : > '{ready}'; while :; do sleep 0.1; done", ExitTimeOut=5)
    until(mac, lambda _: ready.exists())
    assert 0 == mac.launchctl("bootout", mac.target).returncode

    until(mac, lambda each: each is None)


@pytest.mark.parametrize(("code", "comes_back"), [(0, False), (3, True)])
def test_only_a_failure_is_started_again(mac: Mac, code: int, comes_back: bool) -> None:
    load(mac, "/bin/sh", "-c", f"exit {code}", KeepAlive={"SuccessfulExit": False})
    if comes_back:
        printed = until(mac, lambda each: each is not None and (each.number("runs") or 0) >= 3)
        assert printed is not None
        assert "3" == printed.last_exit
    else:
        until(mac, lambda each: each is not None and each.last_exit == "0")
        time.sleep(3 * SECOND)
        printed = look(mac)
        assert printed is not None
        assert (1, "not running") == (printed.number("runs"), printed.state)


@only_stand_in
def test_keys_of_keep_alive_are_alternatives(mac: Mac) -> None:
    """`Crashed: false` alone brings it back after exit 0, whatever `SuccessfulExit` says."""
    load(mac, "/bin/sh", "-c", "exit 0", KeepAlive={"SuccessfulExit": False, "Crashed": False})
    until(mac, lambda each: each is not None and (each.number("runs") or 0) >= 2)


@only_stand_in
def test_two_starts_are_the_throttle_apart(mac: Mac) -> None:
    before = time.time()
    load(mac, "/bin/sh", "-c", f"date +%s.%N >> '{mac.root}/starts'; exit 1", KeepAlive=True, ThrottleInterval=20)
    until(mac, lambda each: each is not None and (each.number("runs") or 0) >= 3)
    starts = [float(line) for line in (mac.root / "starts").read_text().splitlines()]

    # Counted from the beginning: a busy machine may have the time told late, but never too early.
    assert all(start - before >= number * 20 * SCALE for number, start in enumerate(starts))


def test_a_stream_that_cannot_be_opened_leaves_only_a_code(mac: Mac) -> None:
    load(mac, *FOREVER, StandardErrorPath=str(mac.root / "gone" / "err"))
    printed = until(mac, lambda each: each is not None and each.last_exit is not None)

    assert printed is not None
    assert printed.last_exit is not None
    assert printed.last_exit.startswith("78")


def test_the_environment_is_bare(mac: Mac) -> None:
    load(
        mac,
        "/bin/sh",
        "-c",
        f"env > '{mac.root}/env.part'; ulimit -n > '{mac.root}/files'; mv '{mac.root}/env.part' '{mac.root}/env'",
    )
    until(mac, lambda _: (mac.root / "env").exists())
    found = dict(line.split("=", 1) for line in (mac.root / "env").read_text().splitlines() if "=" in line)

    assert "/usr/bin:/bin:/usr/sbin:/sbin" == found["PATH"]
    assert LABEL == found["XPC_SERVICE_NAME"]
    assert not any(name.startswith(("OSAURUS", "FAKE", "PYTHON")) for name in found)
    assert "256" == (mac.root / "files").read_text().strip()


def test_kickstart_starts_and_with_k_replaces(mac: Mac) -> None:
    load(mac, *FOREVER)
    first = running(mac).pid
    assert mac.launchctl("kickstart", mac.target).returncode in (0, 37)
    assert first == running(mac).pid
    assert 0 == mac.launchctl("kickstart", "-k", mac.target).returncode

    until(mac, lambda each: each is not None and each.pid not in (None, first))


def test_the_disabled_set_outlives_everything(mac: Mac) -> None:
    assert 0 == mac.launchctl("disable", mac.target).returncode
    write(mac, *FOREVER)
    refused = mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))
    assert refused.returncode in (5, 119)
    assert f'"{LABEL}" => disabled' in mac.launchctl("print-disabled", f"gui/{os.getuid()}").stdout
    assert 0 == mac.launchctl("enable", mac.target).returncode

    load(mac, *FOREVER)
    running(mac)


@pytest.mark.parametrize("verb", [["print"], ["kickstart"], ["kill", "SIGTERM"]])
def test_what_is_not_loaded_is_not_found(mac: Mac, verb: list[str]) -> None:
    result = mac.launchctl(*verb, mac.target)

    assert result.returncode in (113, 3)
    assert f'Could not find service "{LABEL}" in domain for user gui: {os.getuid()}' in result.stderr


def test_bootout_of_what_is_not_loaded_says_so(mac: Mac) -> None:
    result = mac.launchctl("bootout", mac.target)

    assert (3, "Boot-out failed: 3: No such process\n") == (result.returncode, result.stderr)


@pytest.mark.parametrize(("arguments", "code"), [(["bootout", "nonsense"], 64), (["fly"], 1)])
def test_usage_errors_are_launchctls(mac: Mac, arguments: list[str], code: int) -> None:
    result = mac.launchctl(*arguments)

    assert code == result.returncode
    assert result.stderr.startswith("Unrecognized")


@only_stand_in
def test_a_domain_that_is_not_there_is_said_to_be_none() -> None:
    with macs.mac("user") as mac:
        assert 112 == mac.launchctl("print", f"gui/{os.getuid()}").returncode
        assert 125 == mac.launchctl("bootstrap", f"gui/{os.getuid()}", "/x.plist").returncode
        assert "Background\n" == mac.launchctl("managername").stdout


def test_list_knows_the_pid_and_the_last_wait_status(mac: Mac) -> None:
    load(
        mac,
        "/bin/sh",
        "-c",
        f"[ -e '{mac.root}/again' ] && exec sleep 100; : > '{mac.root}/again'; exit 5",
        KeepAlive=True,
    )
    pid = until(mac, lambda each: each is not None and each.number("runs") == 2 and each.state == "running")
    listed = mac.launchctl("list", LABEL).stdout

    assert pid is not None
    assert f'"PID" = {pid.pid};' in listed
    assert f'"LastExitStatus" = {5 << 8};' in listed
    assert f"{pid.pid}\t" in mac.launchctl("list").stdout


@only_stand_in
def test_the_whole_group_ends_with_its_leader(mac: Mac) -> None:
    load(mac, "/bin/sh", "-c", f"sleep 1000 & echo $! > '{mac.root}/child'; wait")
    until(mac, lambda _: (mac.root / "child").exists() and (mac.root / "child").read_text().strip() != "")
    child = int((mac.root / "child").read_text())
    leader = running(mac).pid
    assert leader is not None
    os.kill(leader, signal.SIGKILL)
    until(mac, lambda each: each is not None and each.pid is None)

    until(mac, lambda _: not _alive(child))


def _alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
