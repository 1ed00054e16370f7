"""The root command, and the one place where a failure becomes a line and an exit code."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from osaurusctl.command import LazyGroup
from osaurusctl.errors import CliError, Exit, Interrupted
from osaurusctl.output import Output, silence
from osaurusd.wire.paths import SocketPathTooLong

PROGRAM = "osaurusctl"

MODULES = {
    "up": "osaurusctl.commands.up",
    "down": "osaurusctl.commands.down",
    "install": "osaurusctl.commands.install",
    "uninstall": "osaurusctl.commands.uninstall",
    "start": "osaurusctl.commands.start",
    "stop": "osaurusctl.commands.stop",
    "restart": "osaurusctl.commands.restart",
    "enable": "osaurusctl.commands.enable",
    "disable": "osaurusctl.commands.disable",
    "logs": "osaurusctl.commands.logs",
    "doctor": "osaurusctl.commands.doctor",
    "reload": "osaurusctl.commands.reload",
    "key": "osaurusctl.commands.key",
    "status": "osaurusctl.commands.status",
    "ls": "osaurusctl.commands.ls",
    "show": "osaurusctl.commands.show",
    "ps": "osaurusctl.commands.ps",
    "run": "osaurusctl.commands.run",
    "bench": "osaurusctl.commands.bench",
    "load": "osaurusctl.commands.load",
    "unload": "osaurusctl.commands.unload",
    "pin": "osaurusctl.commands.pin",
    "unpin": "osaurusctl.commands.unpin",
    "top": "osaurusctl.commands.top",
    "events": "osaurusctl.commands.events",
    "pull": "osaurusctl.commands.pull",
    "pulls": "osaurusctl.commands.pulls",
    "search": "osaurusctl.commands.search",
    "import": "osaurusctl.commands.import_",
    "alias": "osaurusctl.commands.alias",
    "verify": "osaurusctl.commands.verify",
    "rm": "osaurusctl.commands.rm",
    "prune": "osaurusctl.commands.prune",
    "config": "osaurusctl.commands.config",
    "version": "osaurusctl.commands.version",
    "completion": "osaurusctl.commands.completion",
}

_EXPECTED = (CliError, click.ClickException, click.Abort, SocketPathTooLong, UnicodeError, OSError)


class Root(LazyGroup):
    """The root group. It leaves with an exit code however it is called."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        output = Output()
        extra |= {"prog_name": PROGRAM, "standalone_mode": False, "obj": output}
        try:
            code = super().main(arguments, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except _EXPECTED as error:
            # An option that cannot be parsed stops the parser before it has seen a later `--json`.
            output.json |= isinstance(error, click.UsageError) and _asks_for_json(arguments)
            code = _report(_explained(error), output)
        sys.exit(code or Exit.OK)


def _asks_for_json(arguments: list[str]) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _explained(error: Exception) -> CliError:
    match error:
        case CliError():
            return error
        case click.Abort():
            return Interrupted()
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else PROGRAM
            hint = f"`{command} --help` says how it is used"
            message = error.format_message().rstrip(".")
            return CliError(message[:1].lower() + message[1:], hint=hint, exit_code=Exit.USAGE, code="usage")
        case click.ClickException():
            return CliError(error.format_message())
        case UnicodeError():
            return CliError("a text or a file name on the command line or standard input is not valid UTF-8")
        case OSError(strerror=str(reason), filename=path):
            return CliError(f"{path}: {reason}" if path else reason)
        case _:
            return CliError(str(error))


def _report(error: CliError, output: Output) -> int:
    try:
        output.error(error.body, str(error), error.hint)
    except BrokenPipeError:
        silence()
    return error.exit_code


root = Root(
    modules=MODULES,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Control osaurusd, the daemon that serves MLX models over an OpenAI-compatible API.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 daemon not running, 4 model not found, 5 not enough memory, "
    "6 version mismatch, 130 interrupted.",
)
