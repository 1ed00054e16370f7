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
PATIENCE_SECONDS = 30


def _load_fake():
    # Test folders are no packages here, so a helper module has to be found by its path.
    spec = importlib.util.spec_from_file_location("osaurusctl_fake_daemon", Path(__file__).with_name("fake_daemon.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake():
    """The fake daemon's module: its helpers make models and workers."""
    return _load_fake()


@pytest.fixture
def home(monkeypatch):
    """An empty OSAURUS_HOME with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="oc", dir="/tmp"))
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
    """Run a command as a process of its own."""

    def run(*args, **kwargs):
        known = {"capture_output": True, "text": True, "timeout": PATIENCE_SECONDS, "cwd": home, "check": False}
        stdin = {} if "input" in kwargs else {"stdin": subprocess.DEVNULL}
        return subprocess.run([sys.executable, "-m", "osaurusctl", *args], **{**known, **stdin, **kwargs})

    return run


@pytest.fixture
def spawn(home):
    """Start a command and leave it running; whatever is left at the end is killed."""
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


# The child must own the terminal, or Ctrl-C on it would reach nobody.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A person at a terminal in which a command runs."""

    def __init__(self, home, args):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, "-m", "osaurusctl", *args]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, cwd=home, start_new_session=True, **streams)
        os.close(slave)
        self.shown = ""
        self.seen = 0

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, text, patience=PATIENCE_SECONDS):
        """Wait until `text` is shown, after what was expected before."""
        deadline = time.monotonic() + patience
        while text not in self.shown[self.seen :]:
            assert self._read(deadline), f"{text!r} is not shown, but {self.shown[self.seen :]!r}"
        self.seen = self.shown.index(text, self.seen) + len(text)

    def interrupt_prompt(self, text):
        """Press Ctrl-C until `text` is shown: CPython's readline misses a signal just before it waits for a key."""
        for _ in range(PATIENCE_SECONDS):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.expect(text, patience=1)
        raise AssertionError(f"Ctrl-C does not lead to {text!r}, but {self.shown[self.seen :]!r}")

    def end(self):
        """Everything shown until the command ended, and its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(deadline):
            pass
        return self.shown, self.process.wait(PATIENCE_SECONDS)

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
        self.shown += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal(home):
    """Run a command in a terminal of its own."""
    opened = []

    def run(*args):
        opened.append(Terminal(home, args))
        return opened[-1]

    yield run
    for each in opened:
        each.close()
