"""A fake of a user's systemd: it runs units of Type=notify, with the behavior of systemd that the service depends on.

Unit files are read at daemon-reload. A unit is active once it has sent READY=1. A unit that fails is restarted after
RestartSec. Stopping sends SIGTERM to the main process, and SIGKILL to all processes after TimeoutStopSec. A unit that
sends no watchdog notification within WatchdogSec gets SIGABRT. `FAKE_SYSTEMD_STATE` is the directory of the socket, and
`FAKE_SYSTEMD_SCALE` multiplies RestartSec, but not the limits, which a busy machine needs. SIGTERM is the logout.
"""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_SYSTEMD_STATE"])
SCALE = float(os.environ.get("FAKE_SYSTEMD_SCALE", "1"))
UNITS = Path(os.environ.get("XDG_CONFIG_HOME") or Path(os.environ["HOME"]) / ".config") / "systemd" / "user"
MINIMAL_PATH = "/usr/local/bin:/usr/bin:/bin"


class CallError(Exception):
    """A failed call, with the message of systemctl."""


def parse(text):
    """Parse a unit file into lists of values by `Section.Key`."""
    settings, section = {}, ""
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line and not line.startswith(("#", ";")):
            key, equals, value = line.partition("=")
            if not equals:
                raise CallError(f"Unit has a bad unit file setting: {line}")
            settings.setdefault(f"{section}.{key}", []).append(value)
    return settings


def split_words(value):
    return [word.replace("%%", "%") for word in shlex.split(value)]


class Unit:
    """A loaded unit and its process."""

    def __init__(self, name, text):
        self.name, self.text = name, text
        self.settings = parse(text)
        self.process = self.supervisor = None
        self.state = ("inactive", "dead")
        self.result, self.status, self.restarts = "success", 0, 0
        self.notifications = {}
        self.stopping = False
        self.ready = asyncio.Event()

    def seconds(self, key, default):
        value = self.settings.get(f"Service.{key}", [default])[0]
        return None if value == "infinity" else float(value)

    def start(self):
        if self.supervisor is None or self.supervisor.done():
            self.stopping = False
            self.restarts = 0
            self.supervisor = asyncio.create_task(self._supervise())

    async def _supervise(self):
        while True:
            code = await self._run()
            if self.stopping or code in (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGPIPE):
                # A clean exit according to systemd.service(5).
                self.result, self.state = "success", ("inactive", "dead")
                return
            self.result = "exit-code" if code > 0 else "signal"
            if self.settings.get("Service.Restart", ["no"])[0] not in ("on-failure", "always"):
                self.state = ("failed", "failed")
                return
            self.state = ("activating", "auto-restart")
            await asyncio.sleep(self.seconds("RestartSec", "0.1") * SCALE)
            if self.stopping:
                return
            self.restarts += 1

    async def _run(self):
        self.ready.clear()
        self.state = ("activating", "start")
        address = STATE / f"{self.name}.notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(str(address))
            channel.setblocking(False)
            listening = asyncio.create_task(self._listen(channel))
            program, *arguments = split_words(self.settings["Service.ExecStart"][0])
            self.process = await asyncio.create_subprocess_exec(
                program,
                *(word.replace("$$", "$") for word in arguments),
                env=self._environment(address),
                cwd=self.settings.get("Service.WorkingDirectory", ["/"])[0].replace("%%", "%"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=(STATE / "journal").open("ab"),
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            self.status = await self.process.wait()
            listening.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None
        return self.status

    def _environment(self, address):
        variables = dict(
            word.split("=", 1) for value in self.settings.get("Service.Environment", []) for word in split_words(value)
        )
        base = {"PATH": MINIMAL_PATH, "HOME": os.environ["HOME"], "NOTIFY_SOCKET": str(address)}
        if watchdog := self.seconds("WatchdogSec", "infinity"):
            base["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
        return base | variables

    async def _listen(self, channel):
        watchdog = self.seconds("WatchdogSec", "infinity")
        while True:
            try:
                message = await asyncio.wait_for(
                    asyncio.get_running_loop().sock_recv(channel, 65536), watchdog if self.ready.is_set() else None
                )
            except TimeoutError:
                self._send_signal(signal.SIGABRT)
                return
            fields = dict(line.split("=", 1) for line in message.decode().splitlines() if "=" in line)
            self.notifications |= fields
            if fields.get("READY") == "1":
                self.state = ("active", "running")
                self.ready.set()

    async def stop(self):
        self.stopping = True
        if self.supervisor is None or self.supervisor.done():
            return
        if self.process is None:
            self.supervisor.cancel()
            self.state = ("inactive", "dead")
            return
        self.state = ("deactivating", "stop-sigterm")
        self._send_signal(signal.SIGTERM)
        await asyncio.wait({self.supervisor}, timeout=self.seconds("TimeoutStopSec", "90"))
        if not self.supervisor.done():
            os.killpg(self.process.pid, signal.SIGKILL)
            await asyncio.wait({self.supervisor})

    def _send_signal(self, number):
        """Send a signal to the process, which may just have exited."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Manager:
    def __init__(self):
        self.units = {}
        self.wants = STATE / "enabled.json"

    def enabled(self):
        return json.loads(self.wants.read_text()) if self.wants.exists() else []

    def login(self):
        self._reload()
        for name in self.enabled():
            if name in self.units:
                self.units[name].start()

    async def logout(self):
        await asyncio.gather(*(unit.stop() for unit in self.units.values()))

    def _reload(self):
        files = {path.name: path.read_text() for path in UNITS.glob("*.service")}
        for name, text in files.items():
            if name not in self.units:
                self.units[name] = Unit(name, text)
            elif self.units[name].text != text:
                self.units[name].text, self.units[name].settings = text, parse(text)
        for name in set(self.units) - set(files):
            if self.units[name].process is None:
                del self.units[name]

    async def call(self, argv):
        verb, options, names = argv[0], [a for a in argv[1:] if a[0] == "-"], [a for a in argv[1:] if a[0] != "-"]
        try:
            out = await getattr(self, "do_" + verb.replace("-", "_"))(options, *names)
        except CallError as error:
            return 1, "", f"{error}\n"
        return 0, out or "", ""

    async def do_show_environment(self, options):
        return f"HOME={os.environ['HOME']}\n"

    async def do_daemon_reload(self, options):
        self._reload()

    async def do_enable(self, options, name):
        if not (UNITS / name).exists():
            raise CallError(f"Failed to enable unit: Unit file {name} does not exist.")
        self.wants.write_text(json.dumps(sorted({*self.enabled(), name})))

    async def do_disable(self, options, name):
        self.wants.write_text(json.dumps([each for each in self.enabled() if each != name]))

    async def do_start(self, options, name):
        unit = self._unit(name, "start")
        unit.start()
        if "--no-block" not in options:
            await unit.ready.wait()

    async def do_stop(self, options, name):
        await self._unit(name, "stop").stop()

    async def do_restart(self, options, name):
        unit = self._unit(name, "restart")

        async def stop_and_start():
            await unit.stop()
            unit.start()

        task = asyncio.create_task(stop_and_start())
        if "--no-block" not in options:
            await task

    async def do_show(self, options, name):
        unit = self.units.get(name)
        on_disk = UNITS / name
        properties = {
            "LoadState": "loaded" if unit else "not-found",
            "ActiveState": unit.state[0] if unit else "inactive",
            "SubState": unit.state[1] if unit else "dead",
            "MainPID": str(unit.process.pid) if unit and unit.process else "0",
            "NRestarts": str(unit.restarts) if unit else "0",
            "UnitFileState": ("enabled" if name in self.enabled() else "disabled") if on_disk.exists() else "",
            "Result": unit.result if unit else "success",
            "ExecMainStatus": str(abs(unit.status)) if unit else "0",
            "NeedDaemonReload": "yes" if unit and on_disk.exists() and on_disk.read_text() != unit.text else "no",
            "StatusText": unit.notifications.get("STATUS", "") if unit else "",
        }
        names = next((o.partition("=")[2].split(",") for o in options if o.startswith("--property=")), list(properties))
        return "".join(f"{key}={properties[key]}\n" for key in names)

    def _unit(self, name, verb):
        if name not in self.units:
            raise CallError(f"Failed to {verb} {name}: Unit {name} not found.")
        return self.units[name]


async def main():
    manager = Manager()

    async def serve(reader, writer):
        code, out, err = await manager.call(json.loads(await reader.readline()))
        writer.write(json.dumps({"code": code, "out": out, "err": err}).encode() + b"\n")
        writer.close()

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    path = STATE / "systemd.sock"
    manager.login()
    async with await asyncio.start_unix_server(serve, path):
        print("ready", flush=True)
        await stop.wait()
        await manager.logout()
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
