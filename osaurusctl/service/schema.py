"""What a launchd property list of ours may hold: every key with its type, range and the reason if it is forbidden.

launchd takes almost anything and ignores what it does not like, so nothing is written that has not passed here. Source
of the types: launchd.plist(5).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from osaurusctl.service.job import Mode

Rule = Callable[[Any], str | None]
"""Says what is wrong with a value, or None."""

_LIMITS = frozenset(
    {
        "Core", "CPU", "Data", "FileSize", "MemoryLock", "NumberOfFiles", "NumberOfProcesses", "ResidentSetSize",
        "Stack",
    }
)  # fmt: skip
_SESSIONS = frozenset({"Aqua", "Background", "LoginWindow", "StandardIO", "System"})

FORBIDDEN = {
    "Program": "`ProgramArguments` says what runs",
    "BundleProgram": "it works in application bundles only",
    "EnableGlobbing": "arguments are taken as they stand",
    "EnableTransactions": "launchd would kill the daemon without asking it to end",
    "EnablePressuredExit": "launchd would kill the daemon without asking it to end",
    "LaunchOnlyOnce": "the daemon must come back after a crash",
    "LaunchEvents": "the daemon does not speak XPC",
    "MachServices": "the daemon does not speak XPC",
    "Disabled": "`osaurusctl disable` is remembered by launchd itself",
    "TimeOut": "it is obsolete",
    "OnDemand": "it is obsolete",
    "ServiceIPC": "it is obsolete",
    "LimitLoadToHosts": "it is obsolete",
    "LimitLoadFromHosts": "it is obsolete",
    "AbandonProcessGroup": "workers must not outlive the daemon",
}


def problems(tree: Mapping[str, Any], mode: Mode) -> list[str]:
    """Everything that is wrong with a property list, one sentence each that names the key; empty if it is right."""
    return list(_problems(tree, mode))


def _problems(tree: Mapping[str, Any], mode: Mode) -> Iterator[str]:
    for key in ("Label", "ProgramArguments"):
        if key not in tree:
            yield f"{key} is missing"
    for key, value in tree.items():
        if reason := FORBIDDEN.get(key) or _out_of_place(key, mode):
            yield f"{key} must not be there: {reason}"
        elif (rule := _RULES.get(key)) is None:
            yield f"{key} is no key of a property list of ours"
        elif wrong := rule(value):
            yield f"{key}: {wrong}"
    if mode is Mode.SYSTEM and "UserName" not in tree:
        yield "UserName is missing: the daemon must not run as root"


def _out_of_place(key: str, mode: Mode) -> str | None:
    if mode is Mode.SYSTEM and key == "LimitLoadToSessionType":
        return "it is for agents"
    if mode is not Mode.SYSTEM and key in ("UserName", "GroupName", "InitGroups"):
        return "launchd takes it for daemons of the system only"
    return None


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value and "\0" not in value else "must be a string that is not empty"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _integer(low: int, high: int) -> Rule:
    def check(value: Any) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if right else f"must be an integer from {low} to {high}"

    return check


def _one_of(*allowed: str) -> Rule:
    return lambda value: None if value in allowed else f"must be {' or '.join(allowed)}"


def _local_path(value: Any) -> str | None:
    """launchd opens and enters these before the program runs, and has no right to other volumes."""
    if _text(value) or not Path(value).is_absolute():
        return "must be an absolute path"
    if str(value).startswith("/Volumes/") or os.path.realpath(value).startswith("/Volumes/"):
        return f"{value} is not on the boot volume, where alone launchd can open it"
    return None


def _arguments(value: Any) -> str | None:
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        return "must be a list of strings"
    wrong = _local_path(value[0])
    return f"the program {wrong}" if wrong else None


def _strings(value: Any) -> str | None:
    right = isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
    return None if right else "must map names to strings: launchd ignores all else"


def _limits(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "must be a dictionary"
    for name, limit in value.items():
        if name not in _LIMITS or _integer(1, 2**31 - 1)(limit):
            return f"{name} = {limit!r} is no limit"
    return None


def _keep_alive(value: Any) -> str | None:
    # The keys are ORed: {SuccessfulExit: false, Crashed: false} restarts after whatever end.
    return None if value == {"SuccessfulExit": False} else "must be {SuccessfulExit: false}, or exit 0 would not end it"


def _sessions(value: Any) -> str | None:
    names = [value] if isinstance(value, str) else value
    right = isinstance(names, list) and names and all(name in _SESSIONS for name in names)
    return None if right else f"must be of {', '.join(sorted(_SESSIONS))}"


_RULES: Mapping[str, Rule] = {
    "Label": _text,
    "ProgramArguments": _arguments,
    "RunAtLoad": lambda value: None if value is True else "must be true",
    "KeepAlive": _keep_alive,
    "ThrottleInterval": _integer(1, 300),
    # 0 would mean for ever.
    "ExitTimeOut": _integer(5, 3600),
    "ProcessType": _one_of("Interactive"),
    "Umask": _integer(0, 0o777),
    "SoftResourceLimits": _limits,
    "HardResourceLimits": _limits,
    "WorkingDirectory": _local_path,
    "StandardOutPath": _local_path,
    "StandardErrorPath": _local_path,
    "EnvironmentVariables": _strings,
    "LimitLoadToSessionType": _sessions,
    "LegacyTimers": _boolean,
    "MaterializeDatalessFiles": _boolean,
    "UserName": _text,
    "GroupName": _text,
    "InitGroups": _boolean,
}
