"""The root command: registers the commands and turns every failure into an error line and an exit code."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from osaurusctl.command import LazyGroup
from osaurusctl.errors import CliError, ExitCode, Interrupted
from osaurusctl.output import Output, discard_output
from osaurusd import __version__
from osaurusd.wire.paths import SocketPathTooLong

PROGRAM = "osaurusctl"

_PACKAGE = "osaurusctl.commands"

SECTIONS = {
    "Models": {
        "ls": f"{_PACKAGE}.models:list_models",
        "show": f"{_PACKAGE}.models:show",
        "search": f"{_PACKAGE}.downloads:search",
        "pull": f"{_PACKAGE}.downloads:pull",
        "pulls": f"{_PACKAGE}.downloads:pulls",
        "import": f"{_PACKAGE}.imports:import_model",
        "quantize": f"{_PACKAGE}.imports:quantize",
        "alias": f"{_PACKAGE}.models:alias",
        "verify": f"{_PACKAGE}.models:verify",
        "rm": f"{_PACKAGE}.models:rm",
        "prune": f"{_PACKAGE}.models:prune",
    },
    "Running": {
        "run": f"{_PACKAGE}.chat:run",
        "ui": f"{_PACKAGE}.ui:ui",
        "embed": f"{_PACKAGE}.retrieval:embed",
        "rerank": f"{_PACKAGE}.retrieval:rerank",
        "launch": f"{_PACKAGE}.launch:launch",
        "env": f"{_PACKAGE}.launch:env",
        "bench": f"{_PACKAGE}.chat:bench",
        "ps": f"{_PACKAGE}.residency:ps",
        "top": f"{_PACKAGE}.residency:top",
        "load": f"{_PACKAGE}.residency:load",
        "unload": f"{_PACKAGE}.residency:unload",
        "pin": f"{_PACKAGE}.residency:pin",
        "unpin": f"{_PACKAGE}.residency:unpin",
    },
    "Service": {
        "up": f"{_PACKAGE}.service:up",
        "down": f"{_PACKAGE}.service:down",
        "status": f"{_PACKAGE}.status:status",
        "restart": f"{_PACKAGE}.service:restart",
        "drain": f"{_PACKAGE}.drain:drain",
        "undrain": f"{_PACKAGE}.drain:undrain",
        "host": f"{_PACKAGE}.hosts:host",
        "serve": f"{_PACKAGE}.service:serve",
        "install": f"{_PACKAGE}.service:install",
        "uninstall": f"{_PACKAGE}.service:uninstall",
        "start": f"{_PACKAGE}.service:start",
        "stop": f"{_PACKAGE}.service:stop",
        "enable": f"{_PACKAGE}.service:enable",
        "disable": f"{_PACKAGE}.service:disable",
        "doctor": f"{_PACKAGE}.doctor:doctor",
        "logs": f"{_PACKAGE}.logs:logs",
        "events": f"{_PACKAGE}.logs:events",
    },
    "Settings": {
        "config": f"{_PACKAGE}.settings:config",
        "reload": f"{_PACKAGE}.settings:reload",
        "key": f"{_PACKAGE}.settings:key",
        "completion": f"{_PACKAGE}.settings:completion",
        "version": f"{_PACKAGE}.status:version",
        "help": f"{_PACKAGE}.help:show_help",
    },
}
"""The commands by section of the help. Modules are imported lazily: `osaurusctl ls` must not pay for the others."""

COMMANDS = [name for section in SECTIONS.values() for name in section]

ALIASES = {"list": "ls"}

_SYNONYMS = {
    "chat": "run",
    "ask": "run",
    "download": "pull",
    "get": "pull",
    "delete": "rm",
    "remove": "rm",
    "create": "import",
    "convert": "quantize",
    "info": "show",
    "inspect": "show",
    "models": "ls",
    "benchmark": "bench",
    "log": "logs",
    "quit": "down",
    "settings": "config",
    "pair": "host",
    "hosts": "host",
    "cordon": "drain",
    "uncordon": "undrain",
}
"""What other tools call a command."""

_EXPECTED_ERRORS = (CliError, click.ClickException, click.Abort, SocketPathTooLong, UnicodeError, OSError)


class Root(LazyGroup):
    """The root group. However it is called, it ends the process with a documented exit code."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        output = Output()
        extra |= {"prog_name": PROGRAM, "standalone_mode": False, "obj": output}
        try:
            code = super().main(arguments, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except _EXPECTED_ERRORS as error:
            # Parsing stops at the first bad option, so a later `--json` has not been seen yet.
            output.json |= isinstance(error, click.UsageError) and _requests_json(arguments)
            code = _report(_to_cli_error(error), output)
        sys.exit(code or ExitCode.OK)


def _requests_json(arguments: list[str]) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _to_cli_error(error: Exception) -> CliError:
    match error:
        case CliError():
            return error
        case click.Abort():
            return Interrupted()
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else PROGRAM
            return CliError(
                _in_house_style(error.format_message()),
                hint=f'run "{command} --help" for usage',
                exit_code=ExitCode.USAGE,
                code="usage",
            )
        case click.ClickException():
            return CliError(error.format_message())
        case UnicodeError():
            return CliError("an argument, a file name or standard input is not valid UTF-8")
        case OSError(strerror=str(reason), filename=path):
            return CliError(f"{path}: {reason}" if path else reason)
        case _:
            return CliError(str(error))


def _in_house_style(message: str) -> str:
    """Put a message of Click on one line, in the form of all other messages."""
    message = " ".join(message.split()).rstrip(".")
    message = message.replace(". Did you mean ", "; did you mean ").replace(". Choose from: ", "; choose from ")
    message = re.sub(r"'([^']*)'", r'"\1"', message)
    return message[:1].lower() + message[1:]


def _report(error: CliError, output: Output) -> int:
    try:
        output.error(error.body, str(error), error.hint)
    except BrokenPipeError:
        discard_output()
    return error.exit_code


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.ensure_object(Output).show({"version": __version__}, f"{PROGRAM} {__version__}")
        ctx.exit()


root = Root(
    sections=SECTIONS,
    aliases=ALIASES,
    synonyms=_SYNONYMS,
    params=[
        click.Option(
            ["-V", "--version"], is_flag=True, expose_value=False, callback=_show_version, help="Show the version"
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Control osaurusd, the daemon that serves MLX models through the APIs of OpenAI, Anthropic and Ollama.",
    examples=[
        "osaurusctl pull llama-3.2-3b-instruct",
        "osaurusctl run llama-3.2-3b-instruct",
        "osaurusctl help run",
    ],
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 daemon not running, 4 model not found, 5 not enough memory, "
    "6 version mismatch, 130 interrupted.",
)
