"""What the service runs and how it was asked for, whatever the service manager is."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from osaurusctl.errors import CliError
from osaurusd.wire.paths import Paths

LABEL = "ai.osaurus.osaurusd"

# Where files lie: a daemon that does not see these looks elsewhere than this CLI. Given as paths, hence made absolute.
_PLACES = (
    "OSAURUS_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
)

# Those that override the configuration. Named here because it takes long to import `osaurusd.config`.
OVERRIDES = ("OSAURUS_HOST", "OSAURUS_PORT", "OSAURUS_DEFAULT_MODEL", "OSAURUS_LOG_LEVEL")
_CARRIED = (*_PLACES, *OVERRIDES, "HF_ENDPOINT")

_OURS = frozenset({"OSAURUS_SUPERVISED"})
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|_KEY$|^KEY$|AUTH", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")


class Mode(StrEnum):
    """When the service runs: from its user's login on, in that user's sessions without a screen, or from boot on."""

    LOGIN = "login"
    HEADLESS = "headless"
    SYSTEM = "system"


@dataclass(frozen=True)
class Job:
    """What a service manager is told to run."""

    launcher: Path
    user_home: Path
    log_dir: Path
    host: str | None = None
    port: int | None = None
    insecure: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    mode: Mode = Mode.LOGIN
    user: str | None = None

    @property
    def arguments(self) -> list[str]:
        """The command line, program first."""
        host = ["--host", self.host] if self.host is not None else []
        port = ["--port", str(self.port)] if self.port is not None else []
        insecure = ["--insecure"] if self.insecure else []
        return [str(self.launcher), "serve", *host, *port, *insecure]


class Options(NamedTuple):
    """What a command line asks the daemon for."""

    host: str | None
    port: int | None
    insecure: bool


def options(arguments: Iterable[str]) -> Options:
    """What a command line that `Job.arguments` made asks for."""
    words = list(arguments)
    found = dict(itertools.pairwise(words))
    port = found.get("--port", "")
    return Options(found.get("--host"), int(port) if port.isdecimal() else None, "--insecure" in words)


def launcher_path(paths: Paths) -> Path:
    """Where the launcher lies: beside the models, so that it outlives every environment of Python."""
    return paths.models_dir.parent / "bin" / "osaurusd"


def carried(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What of this environment the service needs too, or it would not be the daemon that `osaurusctl up` starts."""
    found = {name: env[name] for name in _CARRIED if env.get(name)}
    for name in found.keys() & set(_PLACES):
        found[name] = str(Path(os.path.expandvars(found[name])).expanduser().absolute())
    for name, value in found.items():
        _refuse_secret(name, value)
    return found


def given(assignments: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping.

    Raises:
        CliError: one is no assignment, is ours to set, or looks like a secret.
    """
    found = {}
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals or not _NAME.fullmatch(name) or "\0" in value or "\n" in value:
            raise CliError(f"`--env` takes KEY=VALUE on one line, and {word!r} is not that", code="bad_env")
        if name in _OURS:
            raise CliError(f"`--env`: {name} is set by the service itself", code="bad_env")
        _refuse_secret(name, value)
        found[name] = value
    return found


def _refuse_secret(name: str, value: str) -> None:
    if _SECRET.search(name) or _URL_WITH_PASSWORD.search(value):
        raise CliError(
            f"{name} looks like a secret, and a service file is no place for one: other programs can read it",
            hint="`hf auth login` keeps the hub's token where osaurusd finds it",
            code="secret_in_env",
        )
