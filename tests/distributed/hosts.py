"""Hosts in tests: each has its own daemon, home directory and place in the network."""

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tomlkit

from tests import daemons
from tests.daemons import Daemon
from tests.distributed.network import Node, connected_nodes
from tests.distributed.relay import relayed

KERNELS = "mlx"
"""MLX keeps compiled kernels in this folder in the one for temporary files."""

LENT_BYTES = 512 * 1024 * 1024


class CommandFailed(Exception):
    """A command of the CLI failed.

    Attributes:
        code: its exit code.
        output: its standard output and standard error.
    """

    def __init__(self, code: int, output: str) -> None:
        super().__init__(f"exit code {code}: {output}")
        self.code = code
        self.output = output


class Host:
    """A machine with a daemon.

    Attributes:
        name: how the other hosts call it.
        home: `OSAURUS_HOME` of its daemon.
        settings: what `configure` writes to its configuration file.
    """

    def __init__(self, name: str, node: Node, home: Path) -> None:
        self.name = name
        self.node = node
        self.home = home
        self.settings: dict[str, dict[str, Any]] = {
            # A standby worker would look like a rank that is left over.
            "residency": {"standby_seconds": 0},
            "distributed": {"listen": node.control, "lend_bytes": LENT_BYTES},
        }
        self._temporary = home / "tmp"
        self._temporary.mkdir()
        share_compiled_kernels(self._temporary)
        (home / "models").mkdir()
        self._running = contextlib.ExitStack()
        self._daemon: Daemon | None = None
        self._port = 0

    @property
    def daemon(self) -> Daemon:
        """The daemon that runs now, or ran last."""
        assert self._daemon is not None
        return self._daemon

    @property
    def pid(self) -> int:
        return self.daemon.process.pid

    @property
    def url(self) -> str:
        """Where clients on this machine reach the daemon's API."""
        return f"http://127.0.0.1:{self._port}"

    def configure(self, section: str, **values: Any) -> None:
        """Change settings before the daemon starts."""
        self.settings.setdefault(section, {}).update(values)

    def start(self, **env: str) -> None:
        """Start the daemon; it serves afterwards.

        Args:
            env: variables for the daemon in addition to those that keep it apart from the user's settings.
        """
        (self.home / "config.toml").write_text(tomlkit.dumps(self.settings))
        # Workers inherit this variable: `processes` finds them by it, also without their daemon.
        env = {"TMPDIR": str(self._temporary), **env}
        running = daemons.running(self.home, prefix=self.node.command, **env)
        self._daemon = self._running.enter_context(running)
        port = urlsplit(self.daemon.url).port
        assert port is not None
        self._port = self._running.enter_context(relayed(self.node, port)) if self.node.command else port

    def stop(self) -> None:
        """Stop the daemon and wait until it has exited."""
        self._running.close()

    def kill(self) -> None:
        """Kill the daemon, as the kernel does if memory runs out."""
        self.daemon.process.kill()
        self.daemon.process.wait()
        self._running.close()

    def close(self) -> None:
        """Stop the daemon, even if a test has suspended it, and kill what is left."""
        self.node.set_link(up=True) if self.node.can_cut else None
        for process in self.processes():
            process.resume()
        self.stop()
        for process in self.processes():
            process.kill()

    def ctl(self, *arguments: str, text: str | None = None) -> Any:
        """Run a command of the CLI on this host, and return its JSON: one value, or a list of values.

        Args:
            arguments: of `osaurusctl`.
            text: its standard input.

        Raises:
            CommandFailed: the command failed.
        """
        # It runs in the network of this process: it talks to the daemon over a Unix socket only.
        result = daemons.ctl(self.home, "--json", *arguments, typed=text or "")
        if result.returncode:
            raise CommandFailed(result.returncode, result.stdout + result.stderr)
        return parse_json(result.stdout)

    def processes(self) -> list[psutil.Process]:
        """The daemon's processes: those of the daemon, its workers and its downloads, whether it still runs or not."""
        marker = str(self._temporary)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if marker == process.environ().get("TMPDIR"):
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The workers on this host."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "osaurusd.worker" in process.cmdline():
                    found.append(process)
        return found

    def rank(self) -> psutil.Process:
        """The only worker on this host."""
        (process,) = self.ranks()
        return process

    def signal_daemon(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def temporary_files(self) -> list[str]:
        """What the daemon and its workers have left in the folder for temporary files."""
        paths = [path.relative_to(self._temporary) for path in self._temporary.rglob("*")]
        return sorted(str(path) for path in paths if path != Path(KERNELS))


def share_compiled_kernels(temporary: Path) -> None:
    """Let workers that use this folder for temporary files use kernels that MLX has compiled before."""
    kernels = Path(tempfile.gettempdir()) / KERNELS
    kernels.mkdir(exist_ok=True)
    (temporary / KERNELS).symlink_to(kernels)


def parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


@contextlib.contextmanager
def connected_hosts(*names: str) -> Iterator[list[Host]]:
    """Connect hosts with these names while the block runs. Their daemons are not started."""
    with connected_nodes(len(names)) as nodes, contextlib.ExitStack() as stack:
        hosts = []
        for name, node in zip(names, nodes, strict=True):
            # A short path, because it becomes a part of the path of a Unix socket.
            home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            hosts.append(Host(name, node, home))
            stack.callback(hosts[-1].close)
        yield hosts
