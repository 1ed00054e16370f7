import contextlib
import errno
import importlib.util
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from osaurusctl.cli import root

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 30


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
def invoke(home):
    """Run a command inside this process."""

    def run(*args, **kwargs):
        return CliRunner().invoke(root, args, **kwargs)

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
        deadline = time.monotonic() + timeout
        while text not in self.output[self.position :]:
            assert self._read(deadline), f"expected {text!r}, got {self.output[self.position :]!r}"
        self.position = self.output.index(text, self.position) + len(text)

    def interrupt_prompt(self, text):
        """Press Ctrl-C until `text` appears: CPython's readline misses a signal just before it waits for a key."""
        for _ in range(TIMEOUT_SECONDS):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.expect(text, timeout=1)
        raise AssertionError(f"expected {text!r} after Ctrl-C, got {self.output[self.position :]!r}")

    def end(self):
        """Return the output until the command exits, and its exit code."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._read(deadline):
            pass
        return self.output, self.process.wait(TIMEOUT_SECONDS)

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
