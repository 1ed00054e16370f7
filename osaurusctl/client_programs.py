"""Client programs that work with the daemon: their environment, their arguments, and what they need of a model."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusd.wire.admin import DaemonStatus, ModelInfo

NO_KEY = "not-needed"
"""Sent by clients that insist on an API key, to a daemon that requires none."""


@dataclass(frozen=True)
class Connection:
    """How a client reaches the daemon, and the model that it uses.

    Attributes:
        url: the base URL without `/v1`.
        api_key: the API key, or a placeholder.
        context_length: tokens, if known.
    """

    url: str
    api_key: str
    model: str
    context_length: int | None = None


@dataclass(frozen=True)
class Program:
    """A client program.

    Attributes:
        executable: the name of the program; None for an environment only.
        environment: returns the variables that it needs.
        arguments: returns the arguments that precede the user's.
        endpoint: the path that it requests from the daemon.
        min_context: the context length that it needs, in tokens.
        install: the command that installs it.
    """

    executable: str | None
    environment: Callable[[Connection], Mapping[str, str]]
    arguments: Callable[[Connection], list[str]] = lambda _: []
    endpoint: str = "/v1/chat/completions"
    min_context: int = 0
    install: str | None = None


def openai_environment(connection: Connection) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": f"{connection.url}/v1",
        "OPENAI_API_BASE": f"{connection.url}/v1",
        "OPENAI_API_KEY": connection.api_key,
    }


def _claude_environment(connection: Connection) -> dict[str, str]:
    models = ("ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    variables = dict.fromkeys((*models, "CLAUDE_CODE_SUBAGENT_MODEL"), connection.model) | {
        "ANTHROPIC_BASE_URL": connection.url,
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_AUTH_TOKEN": connection.api_key,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_FEEDBACK_COMMAND": "1",
    }
    if connection.context_length is not None:
        variables["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(connection.context_length)
    return variables


def _codex_arguments(connection: Connection) -> list[str]:
    settings = {
        "model_provider": "osaurusd",
        "model_providers.osaurusd.name": "osaurusd",
        "model_providers.osaurusd.base_url": f"{connection.url}/v1",
        "model_providers.osaurusd.env_key": "OSAURUS_API_KEY",
        "model_providers.osaurusd.wire_api": "responses",
    }
    # The values are TOML, whose strings are written like those of JSON.
    overrides = [argument for key, value in settings.items() for argument in ("-c", f"{key}={json.dumps(value)}")]
    if connection.context_length is not None:
        overrides += ["-c", f"model_context_window={connection.context_length}"]
    return [*overrides, "-m", connection.model]


def _opencode_environment(connection: Connection) -> dict[str, str]:
    model: dict[str, object] = {"name": connection.model}
    if connection.context_length is not None:
        model["limit"] = {"context": connection.context_length, "output": connection.context_length // 4}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "osaurusd",
        "options": {"baseURL": f"{connection.url}/v1", "apiKey": connection.api_key},
        "models": {connection.model: model},
    }
    config = {"provider": {"osaurusd": provider}, "model": f"osaurusd/{connection.model}"}
    return {"OPENCODE_CONFIG_CONTENT": json.dumps(config)}


def ollama_environment(connection: Connection) -> dict[str, str]:
    return {"OLLAMA_HOST": connection.url}


PROGRAMS: Mapping[str, Program] = {
    "claude": Program(
        "claude",
        _claude_environment,
        endpoint="/v1/messages",
        min_context=25_000,
        install="npm install -g @anthropic-ai/claude-code",
    ),
    "codex": Program(
        "codex",
        lambda connection: {"OSAURUS_API_KEY": connection.api_key},
        _codex_arguments,
        endpoint="/v1/responses",
        min_context=16_000,
        install="npm install -g @openai/codex",
    ),
    "opencode": Program("opencode", _opencode_environment, min_context=16_000, install="npm install -g opencode-ai"),
    "aider": Program(
        "aider",
        openai_environment,
        lambda connection: ["--model", f"openai/{connection.model}"],
        min_context=8_000,
        install="pipx install aider-chat",
    ),
    "llm": Program(
        "llm",
        ollama_environment,
        # The name that the plugin gives the model.
        lambda connection: ["chat", "-m", f"ollama/{connection.model}"],
        endpoint="/api/chat",
        install="pipx install llm && llm install llm-ollama",
    ),
    "openai": Program(None, openai_environment),
    "ollama": Program(None, ollama_environment, endpoint="/api/chat"),
}
"""The programs by the name of the client."""


def find_program(name: str) -> Program:
    """Return a client program; one that is not known gets the variables of OpenAI's and Ollama's clients."""
    generic = Program(name, lambda connection: {**openai_environment(connection), **ollama_environment(connection)})
    return PROGRAMS.get(name, generic)


def base_url(status: DaemonStatus) -> str:
    """Return the URL by which programs on this machine reach the daemon, without a trailing slash.

    Raises:
        CliError: the daemon serves no clients over TCP at the moment.
    """
    if not status.endpoints:
        raise CliError("the daemon is not serving over TCP", hint='run "osaurusctl doctor" for details')
    url = urlsplit(status.endpoints[0])
    # A client cannot connect to a wildcard address.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(url.hostname or "", url.netloc.rpartition(":")[0])
    return urlunsplit((url.scheme, f"{host}:{url.port}", "", "", ""))


def resolve_api_key(status: DaemonStatus, key: str | None) -> str:
    """Return the API key for programs on this machine.

    Raises:
        CliError: the daemon requires one and there is none.
    """
    protection = status.protection
    is_required = protection is not None and protection.key_required and not protection.trusts_loopback
    if key is None and is_required:
        raise CliError(
            "the daemon requires an API key",
            hint='create one with "osaurusctl key create", and set OSAURUS_API_KEY to it',
        )
    return key or NO_KEY


def check_program(client: Client, name: str, program: Program, model: ModelInfo, *, any_context: bool) -> None:
    """Check that the daemon and the model suit a program.

    Raises:
        CliError: the daemon does not have its API, or the model's context is too short.
    """
    if not client.has_route(program.endpoint):
        raise CliError(
            f"this version of the daemon does not serve {program.endpoint}, which {name} needs",
            hint="upgrade osaurusd, or choose another client",
        )
    length = model.context_length
    if length is not None and length < program.min_context and not any_context:
        raise CliError(
            f'the context of model "{model.name}" is {length} tokens; {name} needs at least {program.min_context}',
            hint='choose a model with a longer context from "osaurusctl ls", or use --any-context',
            code="context_too_short",
        )


def format_variables(variables: Mapping[str, str], shell: str) -> list[str]:
    """Return the lines that set variables in a shell."""
    if shell == "fish":
        return [f"set -gx {name} {_quote_fish(value)}" for name, value in variables.items()]
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _quote_fish(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
