"""A daemon whose models reply by a script, and client programs that are installed on first use."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import daemons
from tests.clients.install import SOURCE, install_packages, install_python_clients
from tests.daemons import Daemon
from tests.scripted_model import make_scripted, tool_call

MODEL = "scripted"
QUESTION = "What is the weather in Paris?"
ANSWER = "It is sunny in Paris today."

CLIENT_SECONDS = 120


@dataclass(frozen=True)
class Clients:
    """Runs client programs against a daemon.

    Attributes:
        daemon: the daemon, which has the model `MODEL`. With a tool `weather`, it calls that once before it answers.
        programs: the folder with `python` and `node`.
        home: a home directory for the clients.
    """

    daemon: Daemon
    programs: Path
    home: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """Return an environment without any setting of the user, and with no network but this machine."""
        nowhere = "http://127.0.0.1:9"
        return {
            "HOME": str(self.home),
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1,localhost",
            "BASE_URL": self.daemon.url,
            "MODEL": MODEL,
            "QUESTION": QUESTION,
        } | variables

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a command and return what it prints."""
        result = subprocess.run(
            command,
            cwd=cwd or self.home,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=False,
        )
        assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def run_python(self, script: str) -> Any:
        """Run a script of `tests/clients/python` and return the JSON that it prints."""
        return json.loads(self.run(str(self.programs / "python"), str(SOURCE / "python" / script)))

    def run_node(self, package: str, script: str, **variables: str) -> Any:
        """Run a script of `tests/clients/PACKAGE` and return the JSON that it prints."""
        folder = install_packages(package, self.programs)
        return json.loads(self.run(str(self.programs / "node"), str(folder / script), **variables))


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the installed programs in Python, and Node.js."""
    return install_python_clients()


@pytest.fixture(scope="module")
def clients(programs: Path, module_home: Path, tiny_tokenizer: Path) -> Iterator[Clients]:
    """Client programs, and a daemon for them."""
    make_scripted(module_home / "models" / MODEL, tiny_tokenizer, [tool_call("weather", city="Paris"), ANSWER])
    (module_home / "client").mkdir()
    with daemons.running(module_home) as daemon:
        yield Clients(daemon, programs, module_home / "client")
