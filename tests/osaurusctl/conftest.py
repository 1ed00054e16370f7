import contextlib
import errno
import importlib.util
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyte
import pytest
from click.testing import CliRunner

import osaurusd
from osaurusctl.cli import root

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 120

CURSOR_POSITION_REQUEST = b"\x1b[6n"


def load_fake_daemon():
    # This test directory is not a package, so load the helper module by its path.
    spec = importlib.util.spec_from_file_location("osaurusctl_fake_daemon", Path(__file__).with_name("fake_daemon.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake():
    """The module of the fake daemon; its helpers build models and workers."""
    return load_fake_daemon()


@pytest.fixture
def home(monkeypatch):
    """An empty OSAURUS_HOME with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="oc", dir=os.path.realpath("/tmp")))
    monkeypatch.setenv("OSAURUS_HOME", str(path))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    # An empty entry would mean the current directory.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def daemon(home, fake):
    running = fake.FakeDaemon(home)
    running.start()
    yield running
    running.close()


@pytest.fixture
def fake_program(home, monkeypatch):
    """Replace `python -m osaurusd` by the fake daemon, and return how to read its start record."""
    package = home / "packages" / "osaurusd"
    package.mkdir(parents=True)
    for path in Path(osaurusd.__file__).parent.iterdir():
        if path.name != "__main__.py":
            (package / path.name).symlink_to(path)
    script = Path(__file__).with_name("fake_daemon_program.py")
    (package / "__main__.py").write_text(f"import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')\n")
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{os.environ['PYTHONPATH']}")
    monkeypatch.delenv("FAKE_MODE", raising=False)
    yield lambda: json.loads((home / "started.json").read_text(encoding="utf-8"))
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(json.loads((home / "started.json").read_text(encoding="utf-8"))["pid"], signal.SIGKILL)


@pytest.fixture
def invoke(home):
    """Run a command inside this process."""

    def run(*args, **kwargs):
        return CliRunner().invoke(root, args, **kwargs)

    return run


@pytest.fixture
def run(invoke, home, monkeypatch):
    """Run a command inside this process, in an empty directory, and return what a process would."""
    monkeypatch.chdir(home)

    def run(*args, **kwargs):
        result = invoke(*args, **kwargs)
        return subprocess.CompletedProcess(args, result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def ctl(home):
    """Run a command in a new process."""

    def run(*args, **kwargs):
        defaults = {"capture_output": True, "text": True, "timeout": TIMEOUT_SECONDS, "cwd": home, "check": False}
        stdin = {} if "input" in kwargs else {"stdin": subprocess.DEVNULL}
        return subprocess.run([sys.executable, "-m", "osaurusctl", *args], **{**defaults, **stdin, **kwargs})

    return run


@pytest.fixture
def spawn(home):
    """Start a command in the background; it is killed at the end of the test."""
    running = []

    def start(*args, **kwargs):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-m", "osaurusctl", *args], cwd=home, **{**pipes, **kwargs})
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


# The child must own the terminal, or it would not get the SIGINT of Ctrl-C.
_SET_CONTROLLING_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A command on a pseudo-terminal, driven like a user would."""

    def __init__(self, home, args):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-c", _SET_CONTROLLING_TERMINAL, sys.executable, "-m", "osaurusctl", *args]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, cwd=home, start_new_session=True, **streams)
        os.close(slave)
        self.output = ""
        self.position = 0

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, text, timeout=TIMEOUT_SECONDS):
        """Wait until `text` appears in the output after the previously expected text."""
        self.expect_match(re.escape(text), timeout)

    def expect_match(self, pattern, timeout=TIMEOUT_SECONDS):
        """Like `expect`, for text that matches a regular expression."""
        deadline = time.monotonic() + timeout
        while (found := re.compile(pattern).search(self.output, self.position)) is None:
            assert self._read(deadline), f"expected {pattern!r}, got {self.output[self.position :]!r}"
        self.position = found.end()

    def end(self):
        """Return the output until the command exits, and its exit code."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._read(deadline):
            pass
        return self.output, self.process.wait(TIMEOUT_SECONDS)

    def lines(self):
        """Return the lines on the screen, and those that have scrolled off it."""
        screen = pyte.Screen(80, 500)
        pyte.Stream(screen).feed(self.output)
        return [line.rstrip() for line in screen.display if line.strip()]

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)

    def _read(self, deadline):
        if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if CURSOR_POSITION_REQUEST in data:
            os.write(self.master, b"\x1b[1;1R")
        self.output += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal(home):
    """Run a command on a new pseudo-terminal."""
    opened = []

    def run(*args):
        opened.append(Terminal(home, args))
        return opened[-1]

    yield run
    for terminal in opened:
        terminal.close()
