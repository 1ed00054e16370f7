"""The configuration: one frozen object, read once from file, environment and flags, in that rising precedence."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import msgspec

from osaurusd import origins
from osaurusd.errors import ConfigError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Patience = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Bytes = Annotated[int, msgspec.Meta(ge=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
KeepAlive = Annotated[float, msgspec.Meta(ge=-1, le=10**9)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]

SHUTDOWN_GRACE_SECONDS = 20.0
"""A service manager must wait longer than this before it kills; `launchd/` says how long it does."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of the config file."""


class Server(Section, frozen=True):
    """`[server]`: what clients connect to.

    `host` is bound as given; `localhost` means 127.0.0.1 and, where there is one, ::1. `allowed_hosts` are further
    names for the `Host` header, `allowed_origins` patterns (`osaurusd/origins.py`) of the pages and apps that may call.
    Where other machines can connect, clients need an API key, unless `insecure`, or they are on this machine and
    `trust_loopback`; with `require_key` all need one everywhere. `tls_certificate` and `tls_key` are PEM files.
    A stream whose first item takes longer than `first_byte_seconds` sends its headers then, and keep-alives from then
    on; 0 waits for the first item.
    """

    host: str = "localhost"
    port: Port = 8080
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []
    insecure: bool = False
    require_key: bool = False
    trust_loopback: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    max_body_bytes: Bytes = 32 * 1024 * 1024
    first_byte_seconds: Seconds = 30.0
    shutdown_grace_seconds: Seconds = SHUTDOWN_GRACE_SECONDS


class Limits(Section, frozen=True):
    """`[limits]`: what one client may take of what is there for all.

    The head of a request may have a target of `max_request_line_bytes`, `max_headers` headers of `max_header_bytes`
    each, and `max_head_bytes` in all. It must be there `header_seconds` after its first byte; a body in `body_seconds`,
    without a pause of `body_stall_seconds`. A connection without a request is closed after `idle_seconds`, one whose
    client does not read after `reader_stall_seconds`. `max_connections` counts those over TCP and those over the Unix
    socket apart, `max_requests` all requests to models, and `max_buffered_bytes` the bodies of requests under way.
    `request_seconds` is how long a request to a model may take; 0 is without end.
    """

    max_connections: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    max_requests: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_buffered_bytes: Bytes = 256 * 1024 * 1024
    max_request_line_bytes: Annotated[int, msgspec.Meta(ge=256, le=1024 * 1024)] = 8192
    max_headers: Annotated[int, msgspec.Meta(ge=16, le=10_000)] = 100
    max_header_bytes: Annotated[int, msgspec.Meta(ge=256, le=1024 * 1024)] = 16384
    max_head_bytes: Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024 * 1024)] = 65536
    header_seconds: Patience = 20.0
    body_stall_seconds: Patience = 30.0
    body_seconds: Patience = 300.0
    idle_seconds: Patience = 75.0
    reader_stall_seconds: Patience = 60.0
    request_seconds: Seconds = 0.0


class Defaults(Section, frozen=True):
    """`[defaults]`: sampling for requests that do not say and models whose `generation_config.json` does not either.

    `max_tokens` left out means: until the context is full.
    """

    temperature: Temperature = 1.0
    top_p: Fraction = 1.0
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Worker(Section, frozen=True):
    """`[worker]`: the processes that run the models.

    `dequantize`: on a CPU backend compute in float32 (`auto`: if it fits into memory). `blas`: the library preloaded
    into workers on Linux: `auto` takes the system's OpenBLAS, `none` leaves MLX's own, else a path.
    `prefix_cache_bytes` bounds what each keeps of earlier prompts; left out, it is an eighth of the machine's memory.
    `max_waiting` requests may wait for a model. Running answers stall for `stall_seconds` at most while a prompt is
    processed, or for some of their own steps if those take longer.
    """

    dequantize: Literal["auto", "always", "never"] = "auto"
    blas: str = "auto"
    prefix_cache_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 64
    stall_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.2
    load_timeout_seconds: Seconds = 600.0
    stop_grace_seconds: Seconds = 5.0


class Residency(Section, frozen=True):
    """`[residency]`: which models are in memory, and for how long.

    `budget_bytes` is for all models together; left out, it is 70 % of the machine's memory. A model that nobody has
    used for `keep_alive_seconds` is unloaded: 0 is at once, -1 never; `keep_alive_by_model` says otherwise for some, by
    name. `wait_seconds` is how long running requests may hold up a model that needs their room, and
    `min_residency_seconds` how long a model takes requests before it must let others in. A worker that makes no
    progress for `hang_seconds` is ended. After a load a spare worker is kept for `spare_seconds`; 0 is none.
    """

    budget_bytes: Bytes | None = None
    keep_alive_seconds: KeepAlive = 900.0
    keep_alive_by_model: dict[str, KeepAlive] = {}
    wait_seconds: Seconds = 60.0
    min_residency_seconds: Seconds = 10.0
    hang_seconds: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 120.0
    spare_seconds: Seconds = 0.0


class Input(Section, frozen=True):
    """`[input]`: how much one request may have of anything; what has more is refused.

    `max_schema_bytes` and `max_schema_depth` are for JSON schemas, for the parameters of all tools together, and for
    `chat_template_kwargs`.
    Where OpenAI has a limit, ours is that or higher: programs that speak to models of their own ask for more.
    """

    max_messages: Count = 4096
    max_parts: Count = 2048
    max_tool_calls: Count = 128
    max_name_length: Count = 256
    max_stop_strings: Count = 16
    max_stop_length: Count = 1024
    max_tools: Count = 128
    max_schema_bytes: Count = 128 * 1024
    max_schema_depth: Annotated[int, msgspec.Meta(ge=1, le=400)] = 100
    max_choices: Annotated[int, msgspec.Meta(ge=1, le=128)] = 8
    max_top_logprobs: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    max_logit_bias: Count = 1024
    max_prompts: Count = 128


class Log(Section, frozen=True):
    """`[log]`: how much is logged. Prompts and answers only with `content`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    content: bool = False


class Models(Section, frozen=True):
    """`[models]`: `roots` are further folders to look for models in, besides the Hugging Face cache and our own."""

    roots: list[str] = []


class Pulls(Section, frozen=True):
    """`[pulls]`: downloads from the hub.

    Each has `connections` at most. One that gives nothing for `stall_seconds` is made anew, and a pull that gets
    nothing for `patience_seconds`, however often it asks, has failed. `disk_margin_bytes` of the disk stay free.
    """

    connections: Annotated[int, msgspec.Meta(ge=1, le=32)] = 6
    stall_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    patience_seconds: Seconds = 1800.0
    disk_margin_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1024 * 1024 * 1024


class Config(Section, frozen=True):
    """The whole configuration.

    `default_model` serves `osaurusctl run` and requests that name no model; with `default_for_unknown` also requests
    that name one that is not there.
    """

    default_model: str | None = None
    default_for_unknown: bool = False
    models: Models = Models()
    server: Server = Server()
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    worker: Worker = Worker()
    residency: Residency = Residency()
    pulls: Pulls = Pulls()
    input: Input = Input()
    log: Log = Log()


ENVIRONMENT = {
    "OSAURUS_HOST": ("server", "host"),
    "OSAURUS_PORT": ("server", "port"),
    "OSAURUS_DEFAULT_MODEL": ("default_model",),
    "OSAURUS_LOG_LEVEL": ("log", "level"),
}
"""Variables that override the file, and the key that each one sets."""


def load(
    path: Path, *, env: Mapping[str, str] = os.environ, flags: Mapping[tuple[str, str], object] | None = None
) -> Config:
    """Read the configuration.

    Args:
        path: the TOML file; one that does not exist counts as empty.
        env: the environment.
        flags: values from the command line by key path, such as `{("server", "port"): 8080}`.

    Raises:
        ConfigError: the file is not TOML, or a key is unknown or its value wrong; the message names it.
    """
    tree = _read(path)
    _refuse_unknown_keys(tree, path)
    _convert(tree, str(path))
    for variable, key in ENVIRONMENT.items():
        if variable in env:
            _put(tree, key, env[variable])
            _convert(tree, f"the environment variable {variable}", strict=False)
    for key, value in (flags or {}).items():
        _put(tree, key, value)
    return _convert(tree, "the command line", strict=False)


NEEDS_RESTART = frozenset({"server.host", "server.port", "server.tls_certificate", "server.tls_key"})
"""Keys that a running daemon cannot change."""


def value_of(config: Config, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def changed_keys(old: Config, new: Config) -> list[str]:
    """The dotted keys whose values differ."""
    return [key for key in known_keys() if value_of(old, key) != value_of(new, key)]


def as_far_as_possible(running: Config, wanted: Config) -> Config:
    """`wanted`, but what needs a restart stays as it is `running`."""
    kept = {key.removeprefix("server."): value_of(running, key) for key in NEEDS_RESTART}
    return msgspec.structs.replace(wanted, server=msgspec.structs.replace(wanted.server, **kept))


def known_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the file, dotted."""
    for field in msgspec.structs.fields(section):
        if _is_section(field.type):
            yield from known_keys(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _keys_in(tree: Mapping[str, Any], section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The keys that a file sets, dotted, and whether each is known. Tables of ours are looked into."""
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in tree.items():
        kind: Any = fields.get(key)
        if isinstance(value, dict) and key in fields and get_origin(kind) is not dict:
            # Below a key that is no table, every key is unknown.
            yield from _keys_in(value, kind if _is_section(kind) else Section, f"{prefix}{key}.")
        else:
            yield prefix + key, key in fields


def _refuse_unknown_keys(tree: Mapping[str, Any], path: Path) -> None:
    known = list(known_keys())
    for key in (key for key, is_known in _keys_in(tree) if not is_known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(known)}"
        raise ConfigError(f"{path}: unknown key `{key}`{hint}", param=key)


def _put(tree: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    for name in key[:-1]:
        tree = tree.setdefault(name, {})
    tree[key[-1]] = value


def _convert(tree: Mapping[str, Any], source: str, *, strict: bool = True) -> Config:
    try:
        config = msgspec.convert(tree, Config, strict=strict)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigError(f"{source}: `{key}`: {what[:1].lower()}{what[1:]}", param=key) from error
    _check_origins(config.server.allowed_origins, source)
    return config


def _check_origins(patterns: list[str], source: str) -> None:
    for at, pattern in enumerate(patterns):
        try:
            origins.parse_pattern(pattern)
        except ValueError as error:
            key = f"server.allowed_origins[{at}]"
            raise ConfigError(f"{source}: `{key}`: {error}", param=key) from error
