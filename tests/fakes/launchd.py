"""A fake of the launchd of macOS: one process supervises the jobs of one domain, as long as that domain exists.

Starting `launchd.py DOMAIN` is a login, and SIGTERM is the logout. Jobs are real processes with launchd's minimal
environment and limits. It reproduces the behavior of launchd that the service depends on:

- a definition is cached when it is loaded: changes of its file have no effect until it is loaded again;
- a disabled label stays disabled across bootout, logins and changes of the file;
- the keys of KeepAlive are ORed; a job is restarted at the earliest ThrottleInterval after its last start;
- bootout returns at once; the job stays loaded, as SIGTERMed, until it exits or gets SIGKILL after ExitTimeOut;
- standard streams are opened before the program runs; if that fails, the exit code is 78, without a message;
- the process group of a job is killed when its process exits.

`FAKE_LAUNCHD_STATE` is the directory of sockets, disabled labels and `faults.json`. `FAKE_LAUNCHD_SCALE` multiplies all
durations. `faults.json` is read at every call. It can contain `bootstrap_eio` (how many bootstraps still fail with 5),
`bootstrap_busy` (with 37), `bootout_busy` (how many bootouts return 36), `no_process` (accept jobs, but do not start
them) and `old_print_disabled` (the output format before macOS 13).
"""

import asyncio
import contextlib
import json
import os
import plistlib
import pwd
import resource
import signal
import stat
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_LAUNCHD_STATE"])
SCALE = float(os.environ.get("FAKE_LAUNCHD_SCALE", "1"))

MINIMAL_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
THROTTLE_SECONDS, EXIT_SECONDS, SOFT_FILES = 10, 5, 256
EX_CONFIG = 78
SPAWN_TYPES = {
    "Standard": "daemon (3)",
    "Interactive": "interactive (4)",
    "Background": "background (5)",
    "Adaptive": "adaptive (6)",
}
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


class Job:
    """A loaded definition and its process."""

    def __init__(self, domain, path, tree):
        self.domain, self.path, self.tree = domain, path, tree
        self.label = tree["Label"]
        self.state = "not running"
        self.process = None
        self.runs = 0
        self.last_code = self.last_signal = None
        self.started_at = None
        self.removed = False
        self.start_requested = asyncio.Event()
        self.supervisor = None

    def start(self):
        keep = self.tree.get("KeepAlive", False)
        # Any form of KeepAlive implies a first run.
        if self.tree.get("RunAtLoad") or keep:
            self.start_requested.set()
        self.supervisor = asyncio.create_task(self._supervise())

    async def _supervise(self):
        while not self.removed:
            await self.start_requested.wait()
            await self._throttle()
            if self.removed:
                break
            self.start_requested.clear()
            if await self._run() and not self.removed:
                self.start_requested.set()

    async def _throttle(self):
        if self.started_at is None:
            return
        remaining = self.started_at + self.tree.get("ThrottleInterval", THROTTLE_SECONDS) * SCALE - time.monotonic()
        if remaining > 0:
            self.state = "spawn scheduled"
            await asyncio.sleep(remaining)

    async def _run(self):
        """Run the process until it exits; return whether it must be restarted."""
        self.runs += 1
        self.started_at = time.monotonic()
        self.state = "spawning"
        try:
            self.process = await self._spawn()
        except OSError:
            self.last_code, self.last_signal, self.state = EX_CONFIG, None, "spawn scheduled"
            return True
        self.state = "SIGTERMed" if self.removed else "running"
        code = await self.process.wait()
        self._kill_group()
        self.last_code, self.last_signal = (code, None) if code >= 0 else (None, -code)
        self.process, self.state = None, "not running"
        return self._keep_alive(code)

    async def _spawn(self):
        tree = self.tree
        arguments = tree["ProgramArguments"]
        with contextlib.ExitStack() as stack:
            flags = os.O_CREAT | os.O_APPEND
            stdout = self._open(stack, "StandardOutPath", os.O_WRONLY | flags)
            stderr = self._open(stack, "StandardErrorPath", os.O_WRONLY | flags)
            return await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=tree.get("WorkingDirectory", "/"),
                env=self._environment(),
                umask=int(tree.get("Umask", 0o022)),
                start_new_session=True,
                preexec_fn=self._limit,
            )

    def _open(self, stack, key, flags):
        descriptor = os.open(self.tree.get(key, os.devnull), flags, 0o666)
        stack.callback(os.close, descriptor)
        return descriptor

    def _environment(self):
        user = pwd.getpwuid(os.getuid())
        base = {
            "PATH": MINIMAL_PATH,
            "HOME": os.environ["HOME"],
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell or "/bin/zsh",
            "TMPDIR": "/tmp/",
            "SSH_AUTH_SOCK": "/private/tmp/com.apple.launchd.fake/Listeners",
            "XPC_SERVICE_NAME": self.label,
        }
        variables = {k: v for k, v in self.tree.get("EnvironmentVariables", {}).items() if isinstance(v, str)}
        return base | variables

    def _limit(self):
        soft = self.tree.get("SoftResourceLimits", {}).get("NumberOfFiles", SOFT_FILES)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))

    def _kill_group(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _keep_alive(self, code):
        keep = self.tree.get("KeepAlive", False)
        if isinstance(keep, bool):
            return keep
        succeeded, crashed = code == 0, code < 0 and -code not in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
        conditions = []
        if "SuccessfulExit" in keep:
            conditions.append(keep["SuccessfulExit"] == succeeded)
        if "Crashed" in keep:
            conditions.append(keep["Crashed"] == crashed)
        return any(conditions)

    def kick(self, kill):
        if self.process is None:
            self.start_requested.set()
        elif kill:
            self.process.send_signal(signal.SIGKILL)
            self.start_requested.set()

    async def remove(self):
        """Stop the job; return when its process has exited."""
        self.removed = True
        if self.process is None:
            self.supervisor.cancel()
        else:
            self.state = "SIGTERMed"
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.CancelledError):
            done, _ = await asyncio.wait({self.supervisor}, timeout=self.tree.get("ExitTimeOut", EXIT_SECONDS) * SCALE)
            if not done and self.process is not None:
                self.process.send_signal(signal.SIGKILL)
            await asyncio.wait({self.supervisor})


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
            job.start()

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
        job.process.send_signal(number)

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


def format_job(job):
    """Format a job like `launchctl print`: its own fields after one tab, nested ones after more."""
    tree = job.tree
    arguments = tree["ProgramArguments"]
    variables = {**tree.get("EnvironmentVariables", {}), "XPC_SERVICE_NAME": job.label}
    lines = [
        f"{job.domain.name}/{job.label} = {{",
        f"\tactive count = {1 if job.process else 0}",
        f"\tpath = {job.path}",
        "\ttype = LaunchAgent",
        f"\tstate = {job.state}",
        "",
        f"\tprogram = {arguments[0]}",
        *format_block("arguments", arguments),
    ]
    for key, name in (("StandardOutPath", "stdout path"), ("StandardErrorPath", "stderr path")):
        lines += [f"\t{name} = {tree[key]}"] if key in tree else []
    lines += [
        *format_block("inherited environment", ["SSH_AUTH_SOCK => /private/tmp/com.apple.launchd.fake/Listeners"]),
        *format_block("default environment", [f"PATH => {MINIMAL_PATH}"]),
        *format_block("environment", [f"{name} => {value}" for name, value in variables.items()]),
        f"\tminimum runtime = {tree.get('ThrottleInterval', THROTTLE_SECONDS)}",
        f"\texit timeout = {tree.get('ExitTimeOut', EXIT_SECONDS)}",
        f"\truns = {job.runs}",
        *([f"\tpid = {job.process.pid}"] if job.process else []),
    ]
    if job.last_signal:
        lines += [f"\tlast terminating signal = {signal.strsignal(job.last_signal)}: {job.last_signal}"]
    else:
        code = "(never exited)" if job.last_code is None else job.last_code
        lines += [f"\tlast exit code = {'78: EX_CONFIG' if code == EX_CONFIG else code}"]
    lines += [
        *format_block("resource coalition", ["state = active", "pid = 1"]),
        f"\tspawn type = {SPAWN_TYPES[tree.get('ProcessType', 'Standard')]}",
    ]
    return "\n".join([*lines, "}", ""])


def format_block(name, lines):
    return [f"\t{name} = {{", *(f"\t\t{line}" for line in lines), "\t}", ""]


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
