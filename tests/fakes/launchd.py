"""A fake of the launchd of macOS: one process supervises the jobs of one domain, as long as that domain exists.

`python -m tests.fakes.launchd DOMAIN` is a login, and SIGTERM is the logout. It reproduces the behavior of launchd that
the service depends on:

- a definition is cached when it is loaded: changes of its file have no effect until it is loaded again;
- a disabled label stays disabled across bootout, logins and changes of the file;
- the keys of KeepAlive are ORed; a job is restarted at the earliest ThrottleInterval after its last start;
- bootout returns at once; the job stays loaded, as SIGTERMed, until it exits or gets SIGKILL after ExitTimeOut;
- standard streams are opened before the program runs; if that fails, the exit code is 78, without a message;
- the process group of a job is killed when its process exits.

`FAKE_LAUNCHD_STATE` is the directory of sockets, disabled labels and `faults.json`. `FAKE_LAUNCHD_SCALE` multiplies
ThrottleInterval. ExitTimeOut is not scaled: on a busy machine, a job needs that time. `faults.json` is read at every
call. It can contain `bootstrap_eio` (how many bootstraps still fail with 5), `bootstrap_busy` (with 37), `bootout_busy`
(how many bootouts return 36), `pended` (how many bootstraps succeed without starting the job, until it is kickstarted),
`no_process` (accept jobs, but never start them) and `old_print_disabled` (the output format before macOS 13).
"""

import asyncio
import contextlib
import json
import os
import plistlib
import signal
import stat
import sys
from pathlib import Path

from tests.fakes.launchd_job import Job, format_job

STATE = Path(os.environ["FAKE_LAUNCHD_STATE"])

SESSIONS = {"gui": "Aqua", "user": "Background", "system": "System"}
HINT = "Try re-running the command as root for richer errors.\n"


class CallError(Exception):
    """A failed call, with the exit code and message of launchctl."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code
        self.text = text


class JsonFile:
    """A dictionary in a JSON file, which tests and launchctl change too."""

    def __init__(self, name):
        self.path = STATE / name

    def read(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def set(self, key, value):
        self.path.write_text(json.dumps(self.read() | {key: value}))

    def consume(self, key):
        """Decrement a counter; return whether it was positive."""
        count = self.read().get(key)
        if not count:
            return False
        self.set(key, count - 1)
        return True


class Domain:
    """A domain, which exists from login to logout."""

    def __init__(self, name):
        self.name = name
        self.kind, _, uid = name.partition("/")
        self.uid = uid or "system"
        self.jobs = {}
        self.disabled = JsonFile(f"disabled-{self.uid}.json")
        self.faults = JsonFile("faults.json")
        self.removals = set()

    def login(self):
        """Load the property lists in the user's LaunchAgents directory."""
        for path in sorted((Path(os.environ["HOME"]) / "Library" / "LaunchAgents").glob("*.plist")):
            with contextlib.suppress(CallError):
                self._load(str(path))

    async def logout(self):
        await asyncio.gather(*(job.remove() for job in self.jobs.values()))

    async def call(self, argv):
        verb, arguments = argv[0], argv[1:]
        try:
            return 0, await getattr(self, "do_" + verb.replace("-", "_"))(arguments) or "", ""
        except CallError as error:
            return error.code, "", error.text

    async def do_bootstrap(self, arguments):
        if self.faults.consume("bootstrap_eio"):
            raise self._eio("Bootstrap")
        if self.faults.consume("bootstrap_busy"):
            raise CallError(
                37,
                f"{arguments[1]}: service already bootstrapped\nBootstrap failed: 37: Operation already in progress\n",
            )
        self._load(arguments[1])

    def _load(self, path):
        tree = self._read(path)
        label = tree["Label"]
        if label in self.jobs:
            raise self._eio("Bootstrap")
        if self.disabled.read().get(label):
            raise CallError(119, "Bootstrap failed: 119: Service is disabled\n")
        sessions = tree.get("LimitLoadToSessionType", "Aqua" if self.kind == "gui" else SESSIONS[self.kind])
        if SESSIONS[self.kind] not in ([sessions] if isinstance(sessions, str) else sessions):
            raise CallError(134, "Bootstrap failed: 134: Service cannot load in requested session\n")
        self.jobs[label] = job = Job(self, path, tree)
        if self.faults.read().get("no_process"):
            job.supervisor = asyncio.create_task(asyncio.Event().wait())
        else:
            job.start(pend=self.faults.consume("pended"))

    def _read(self, path):
        try:
            info = Path(path).lstat()
            valid = stat.S_ISREG(info.st_mode) and path.endswith(".plist") and not info.st_mode & 0o022
            tree = plistlib.loads(Path(path).read_bytes())
        except Exception:  # noqa: BLE001 - launchd reports every problem of a file with the same error
            raise self._eio("Bootstrap") from None
        if not valid or info.st_uid not in (0, os.getuid()) or not isinstance(tree, dict):
            raise self._eio("Bootstrap")
        if "Label" not in tree or not tree.get("ProgramArguments"):
            raise self._eio("Bootstrap")
        return tree

    async def do_bootout(self, arguments):
        job = self.jobs.get(self._label(arguments[0]))
        if job is None:
            raise CallError(3, "Boot-out failed: 3: No such process\n")
        if not job.removed:
            task = asyncio.create_task(self._remove(job))
            self.removals.add(task)
            task.add_done_callback(self.removals.discard)
        if self.faults.consume("bootout_busy"):
            raise CallError(36, "Boot-out failed: 36: Operation now in progress\n")

    async def _remove(self, job):
        await job.remove()
        self.jobs.pop(job.label, None)

    async def do_enable(self, arguments):
        self.disabled.set(self._label(arguments[0]), False)

    async def do_disable(self, arguments):
        self.disabled.set(self._label(arguments[0]), True)

    async def do_kickstart(self, arguments):
        job = self._job(arguments[-1])
        if job.process is not None and "-k" not in arguments:
            raise CallError(37, "")
        job.kick("-k" in arguments)

    async def do_kill(self, arguments):
        job = self._job(arguments[1])
        if job.process is None:
            raise CallError(3, "No process to signal.\n")
        number = int(arguments[0]) if arguments[0].isdecimal() else signal.Signals[arguments[0]]
        job.send_signal(number)

    async def do_print(self, arguments):
        if arguments[0] == self.name:
            return f"{self.name} = {{\n\ttype = {self.kind}\n\thandle = 1\n}}\n"
        return format_job(self._job(arguments[0]))

    async def do_print_disabled(self, arguments):
        old = self.faults.read().get("old_print_disabled")
        states = {True: "true" if old else "disabled", False: "false" if old else "enabled"}
        lines = [f'\t\t"{label}" => {states[value]}' for label, value in self.disabled.read().items()]
        return "\n".join(["\tdisabled services = {", *lines, "\t}", ""])

    def _label(self, target):
        return target.removeprefix(self.name + "/")

    def _job(self, target):
        label = self._label(target)
        if label not in self.jobs:
            domain = f"user gui: {self.uid}" if self.kind == "gui" else f"uid: {self.uid}"
            raise CallError(113, f'Bad request.\nCould not find service "{label}" in domain for {domain}\n')
        return self.jobs[label]

    @staticmethod
    def _eio(verb):
        return CallError(5, f"{verb} failed: 5: Input/output error\n{HINT}")


async def main(name):
    domain = Domain(name)

    async def serve(reader, writer):
        code, out, err = await domain.call(json.loads(await reader.readline())["argv"])
        writer.write(json.dumps({"code": code, "out": out, "err": err}).encode() + b"\n")
        writer.close()

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    path = STATE / f"{name.replace('/', '-')}.sock"
    domain.login()
    async with await asyncio.start_unix_server(serve, path):
        print("ready", flush=True)
        await stop.wait()
        await domain.logout()
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
