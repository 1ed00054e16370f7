"""The fake launchd's jobs: real processes with launchd's minimal environment and limits, and their description."""

import asyncio
import contextlib
import os
import pwd
import resource
import signal
import time

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
        self.pended = False
        self.start_requested = asyncio.Event()
        self.supervisor = None

    def start(self, *, pend=False):
        """Supervise the job. With `pend`, its first run waits for a kickstart, as if the domain were on demand only."""
        keep = self.tree.get("KeepAlive", False)
        # Any form of KeepAlive implies a first run.
        self.pended = bool(pend and (self.tree.get("RunAtLoad") or keep))
        if (self.tree.get("RunAtLoad") or keep) and not pend:
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
        self.pended = False
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
            self.send_signal(signal.SIGKILL)
            self.start_requested.set()

    def send_signal(self, number):
        """Send a signal to the process, which may just have exited."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def remove(self):
        """Stop the job; return when its process has exited."""
        self.removed = True
        if self.process is None:
            self.supervisor.cancel()
        else:
            self.state = "SIGTERMed"
            self.send_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.CancelledError):
            done, _ = await asyncio.wait({self.supervisor}, timeout=self.tree.get("ExitTimeOut", EXIT_SECONDS))
            if not done and self.process is not None:
                self.send_signal(signal.SIGKILL)
            await asyncio.wait({self.supervisor})


def format_job(job):
    """Format a job like `launchctl print`: its own fields after one tab, nested ones after more."""
    tree = job.tree
    arguments = tree["ProgramArguments"]
    # launchd adds variables of its own to those of the file.
    variables = {**tree.get("EnvironmentVariables", {}), "OSLogRateLimit": 64, "XPC_SERVICE_NAME": job.label}
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
        *(["\tpended nondemand spawn = speculative"] if job.pended else []),
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
