"""What the service runs and with which options, independent of the service manager."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from osaurusctl.errors import CliError
from osaurusd.wire.errors import as_json
from osaurusd.wire.paths import Paths

LABEL = "ai.osaurus.osaurusd"

# Variables with paths: without them the daemon would use other files than this CLI. They are made absolute.
_PATH_VARIABLES = (
    "OSAURUS_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)

# Variables that override the configuration. They are listed here because importing `osaurusd.config` is slow.
OVERRIDES = ("OSAURUS_HOST", "OSAURUS_PORT", "OSAURUS_DEFAULT_MODEL", "OSAURUS_LOG_LEVEL")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_INHERITED = (
    *(*_PATH_VARIABLES, *OVERRIDES, *_PROXIES),
    *("NO_PROXY", "no_proxy", "HF_ENDPOINT", "HF_HUB_DISABLE_SYMLINKS"),
)

RESERVED = frozenset({"OSAURUS_SUPERVISED"})
"""Variables that the service file itself sets."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|_KEY$|^KEY$|AUTH", re.IGNORECASE)
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")


class Mode(StrEnum):
    """When the service starts: at the user's login, in the user's non-GUI sessions, or at boot."""

    LOGIN = "login"
    HEADLESS = "headless"
    SYSTEM = "system"


@dataclass(frozen=True)
class Job:
    """What the service manager runs."""

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
        """The command line, including the program."""
        host = ["--host", self.host] if self.host is not None else []
        port = ["--port", str(self.port)] if self.port is not None else []
        insecure = ["--insecure"] if self.insecure else []
        return [str(self.launcher), "serve", *host, *port, *insecure]


class ServeOptions(NamedTuple):
    """The options of `osaurusd serve` that an installation sets."""

    host: str | None
    port: int | None
    insecure: bool


def parse_serve_options(arguments: Iterable[str]) -> ServeOptions:
    """Parse a command line that `Job.arguments` built."""
    words = list(arguments)
    values = dict(itertools.pairwise(words))
    port = values.get("--port", "")
    return ServeOptions(values.get("--host"), int(port) if port.isdecimal() else None, "--insecure" in words)


def launcher_path(paths: Paths) -> Path:
    """Return the path of the launcher, next to the models: outside every Python environment, so that it lasts."""
    return paths.models_dir.parent / "bin" / "osaurusd"


def inherited_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that the service needs to run the same daemon as `osaurusctl up`.

    Proxies with credentials are left out; `proxies_with_credentials` returns their names.

    Raises:
        CliError: another value looks like a secret.
    """
    omitted = proxies_with_credentials(env)
    variables = {name: env[name] for name in _INHERITED if env.get(name) and name not in omitted}
    for name in variables.keys() & set(_PATH_VARIABLES):
        variables[name] = str(Path(os.path.expandvars(variables[name])).expanduser().absolute())
    for name, value in variables.items():
        _reject_secret(name, value)
    return variables


def proxies_with_credentials(env: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the proxy variables whose values contain a user name or password."""
    return [name for name in _PROXIES if "@" in env.get(name, "")]


def parse_env_options(assignments: Iterable[str]) -> dict[str, str]:
    """Parse `KEY=VALUE` arguments.

    Raises:
        CliError: an argument is not an assignment, sets a reserved variable, or looks like a secret.
    """
    variables = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not _VARIABLE_NAME.fullmatch(name) or "\0" in value or "\n" in value:
            raise CliError(f"--env {as_json(assignment)} is not of the form KEY=VALUE, on one line", code="bad_env")
        if name in RESERVED:
            raise CliError(f"--env cannot set {name}: the service sets it", code="bad_env")
        _reject_secret(name, value)
        variables[name] = value
    return variables


def _reject_secret(name: str, value: str) -> None:
    if proxies_with_credentials({name: value}):
        raise CliError(
            f"{name} contains credentials, and other programs can read the service file",
            hint="use a proxy on this machine that adds the credentials",
            code="secret_in_env",
        )
    if _SECRET.search(name) or _URL_WITH_PASSWORD.search(value):
        raise CliError(
            f"{name} looks like a secret, and other programs can read the service file",
            hint='run "hf auth login" to store a Hugging Face token where osaurusd reads it',
            code="secret_in_env",
        )
