"""Checks of the service: installation, restarts, recovery, ports, access, imports, power, removal."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

from tests import daemons, starter_model
from tests.conftest import SMOLLM
from tests.mac.checks import Details, Run, Skipped, expect, run_program
from tests.macs import Mac

READY_SECONDS = 30.0
RESPAWN_SECONDS = 15.0

_CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    sys.exit(13)
"""


def installation(run: Run) -> Details:
    """The service is ready in time, without drift. The report contains what launchd prints about it."""
    started = time.monotonic()
    install = run.mac.install()
    seconds = time.monotonic() - started
    expect(install.returncode == 0, install.stderr)
    service = run.mac.service()
    printed = run.mac.launchctl("print", run.mac.target).stdout
    details = {"seconds": seconds, "service": service, "launchctl_print": printed}
    expect(service["ready"] and not service["drift"], f"not ready, or drift: {details}")
    expect(seconds <= READY_SECONDS, f"it took {seconds:.1f} s")
    return details


def doctor(run: Run) -> Details:
    """No check of `osaurusctl doctor` fails."""
    document = json.loads(run.mac.ctl("doctor", "--json").stdout)
    failures = [check for check in document["checks"] if check["verdict"] == "failure"]
    expect(not failures, f"failures: {failures}")
    return dict(document)


def import_from_downloads(run: Run) -> Details:
    """A file that only the user may open is imported: macOS does not let the daemon open it."""
    downloads = Path(run.mac.env["HOME"]) / "Downloads"
    created = not downloads.exists()
    downloads.mkdir(exist_ok=True)
    source = downloads / f"osaurus-test-{os.getpid()}.gguf"
    by_path: tuple[int, object] = (200, "the daemon has access")
    try:
        shutil.copyfile(starter_model.fetch(), source)
        # The response to an import that succeeds is JSON lines.
        with contextlib.suppress(json.JSONDecodeError):
            by_path = run.mac.admin("POST", "/v0/imports", {"path": str(source), "name": "by-path"})
        imported = run.mac.ctl("import", str(source), "--name", SMOLLM)
    finally:
        source.unlink(missing_ok=True)
        if created:
            downloads.rmdir()
    expect(imported.returncode == 0, imported.stderr)
    return {"by_path": by_path}


def restarts(run: Run) -> Details:
    """Every restart, and every stop and start, ends with a ready service."""
    seconds: dict[str, list[float]] = {"restart": [], "stop_and_start": []}
    for name, commands in (("restart", ["restart"]), ("stop_and_start", ["stop", "start"])):
        for _ in range(run.scale.repeats):
            before, started = run.mac.pid, time.monotonic()
            for command in commands:
                result = run.mac.ctl(command)
                expect(result.returncode == 0, result.stderr)
            seconds[name].append(round(time.monotonic() - started, 2))
            expect(run.mac.service()["ready"] and run.mac.pid != before, f"not replaced by {name}")
    return {"seconds": seconds, "service": run.mac.service()}


def recovery_from_a_kill(run: Run) -> Details:
    """launchd restarts a killed daemon, and its workers end with it."""
    expect(run.mac.admin("POST", "/v0/load", {"model": SMOLLM})[0] == 200, "the model cannot be loaded")
    pid = run.mac.pid
    children = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    daemons.wait_until(lambda: run.mac.is_serving() and run.mac.pid != pid)
    seconds = time.monotonic() - started
    _, alive = psutil.wait_procs(children, timeout=10)
    expect(not alive, f"orphans: {alive}")
    expect(seconds <= RESPAWN_SECONDS, f"it took {seconds:.1f} s")
    return {"seconds": seconds, "last_exit": run.mac.service()["last_exit"]}


def port_in_use(run: Run) -> Details:
    """A port that another program uses on all addresses is a conflict, and the program is named."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run.mac.install("--port", str(port), "--timeout", "5")
    expect(result.returncode == 1 and f"port {port}" in result.stderr, f"no conflict: {result.stderr}")
    expect(f"(pid {os.getpid()})" in result.stderr, f"the program is not named: {result.stderr}")
    daemons.wait_until(lambda: run.mac.is_serving())
    return {"message": result.stderr}


def access_by_another_user(run: Run) -> Details:
    """Another user of this machine cannot connect to the admin socket."""
    # The system's Python, because the one of this process may be in a private folder.
    command = ["/usr/bin/python3", "-IS", "-c", _CONNECT, str(run.mac.socket)]
    if os.geteuid() != 0:
        command = ["sudo", "-n", "-u", "daemon", *command]
    user = "daemon" if os.geteuid() == 0 else None
    try:
        result = subprocess.run(command, user=user, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        raise Skipped(f"no Python for another user: {error}") from error
    if result.returncode not in (0, 13):
        raise Skipped(f"no access as another user: {result.stderr.strip()}")
    expect(result.returncode == 13, "another user can connect")
    return {}


def power_assertion(run: Run) -> Details:
    """The system does not sleep during a request."""
    if run_program(["pmset", "-g", "assertions"]) is None:
        raise Skipped("requires pmset")
    body = {"model": SMOLLM, "messages": [{"role": "user", "content": "Count to 10000."}], "max_tokens": 4000}
    with run.mac.post_chat({**body, "stream": True}) as connection:
        connection.getresponse().readline()
        deadline = time.monotonic() + READY_SECONDS
        while "caffeinate" not in (output := run_program(["pmset", "-g", "assertions"]) or ""):
            expect(time.monotonic() < deadline, f"no assertion: {output}")
            time.sleep(0.5)
    return {"assertions": output}


def removal(run: Run) -> Details:
    """Uninstalling with --purge leaves no file, job or process."""
    result = run.mac.ctl("uninstall", "--purge", "--yes")
    expect(result.returncode == 0, result.stderr)
    expect(not run.mac.plist.exists(), "the property list still exists")
    expect(run.mac.launchctl("print", run.mac.target).returncode != 0, "the job is still loaded")
    left = sorted(path.name for path in run.mac.home.iterdir())
    expect(not left, f"files left: {left}")
    processes = _processes_of(run.mac)
    expect(not processes, f"processes left: {processes}")
    return {}


def _processes_of(mac: Mac) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(mac.home) in word for word in process.cmdline()):
                found.append(str(process))
    return found
