"""Click base classes and options that the commands share."""

import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from osaurusctl.errors import ExitCode
from osaurusctl.formatting import parse_duration
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.errors import as_json

SHELLS = ("bash", "zsh", "fish")


def json_option() -> click.Option:
    """Build `--json`. It is eager, so that a usage error that follows it is reported as JSON too."""
    return click.Option(
        ["--json"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_enable_json,
        help="Print one JSON document on standard output",
    )


def timeout_option(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--timeout",
        type=click.FloatRange(0),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help="Give up after this many seconds",
    )


def _enable_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    output = ctx.find_object(Output)
    if value and output:
        output.json = True


class _HelpOption(click.Command):
    """A command whose `--help` is described in the style of its other options."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "Show this message"
        return option


class Command(_HelpOption):
    """A command with `--json`, and with example command lines below its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(json_option())
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's API
        _write_examples(formatter, self.examples)


class Group(_HelpOption, click.Group):
    """A group of commands; the group and each of its commands take `--json`.

    `synonyms` are words that are not commands of the group, and the command that is suggested instead.
    """

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(json_option())
        self.examples = examples
        self.synonyms: Mapping[str, str] = {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not ctx.resilient_parsing and not args[0].startswith("-"):
            self.require_command(ctx, args[0])
        return super().resolve_command(ctx, args)

    def require_command(self, ctx: click.Context, name: str) -> click.Command:
        """Return a command.

        Raises:
            click.UsageError: no such command; the message suggests similar ones.
        """
        command = self.get_command(ctx, name)
        if command is None:
            similar = difflib.get_close_matches(name, [*self.list_commands(ctx), *self.synonyms], n=2)
            names = dict.fromkeys(self.synonyms.get(each, each) for each in [name, *similar])
            suggestion = " or ".join(f'"{each}"' for each in names if each != name)
            ctx.fail(f'no such command "{name}"' + (f"; did you mean {suggestion}?" if suggestion else ""))
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)
        super().format_epilog(ctx, formatter)


class LazyGroup(Group):
    """A group that imports the module of a command when that command is first used.

    Args:
        sections: by title of a help section, its commands: name to `module:attribute`.
        aliases: further names of commands, which the help does not list.
        synonyms: words that are not commands, and the command that is suggested instead.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Mapping[str, str]],
        aliases: Mapping[str, str],
        synonyms: Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._targets = {name: target for section in sections.values() for name, target in section.items()}
        self._aliases = aliases
        self.synonyms = {alias: alias for alias in aliases} | dict(synonyms)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's API
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's API
        target = self._targets.get(self._aliases.get(cmd_name, cmd_name))
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._targets))
        limit = formatter.width - width - 6
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), command.get_short_help_str(limit)) for name, command in self._load(ctx, names)]
                )

    def _load(self, ctx: click.Context, names: Mapping[str, str]) -> Iterator[tuple[str, click.Command]]:
        for name in names:
            if (command := self.get_command(ctx, name)) is not None:
                yield name, command


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Duration(click.ParamType[float]):
    """A duration in seconds, written as `90`, `90s`, `15m`, `1h` or `2d`; `-1` means no limit."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        if text == "-1":
            return -1.0
        seconds = parse_duration(text if text[-1:].isalpha() else f"{text}s")
        if seconds is None:
            self.fail(
                f"{as_json(value)} is not a duration; use a value such as 90s, 15m, 1h, 2d, or -1 for never", param, ctx
            )
        return seconds


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Make Ctrl-C, the normal way to stop a command that follows something, exit with code 130 and no message."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from error


def needs_confirmation(yes: bool, output: Output) -> bool:
    """Whether the user must confirm a removal.

    Raises:
        click.UsageError: the user must confirm, but there is no terminal to prompt on.
    """
    if yes:
        return False
    if output.json:
        raise click.UsageError("--json cannot prompt for confirmation; pass --yes")
    if not can_prompt(output):
        raise click.UsageError("no terminal to prompt for confirmation; pass --yes")
    return True


def can_prompt(output: Output) -> bool:
    """Whether a person can answer a question now."""
    return not output.json and is_terminal(sys.stdin) and is_terminal(sys.stderr)


def confirm_removal(preview: str, question: str, output: Output) -> None:
    """Show what will be removed, and end the command with exit code 1 unless the user answers yes."""
    output.note(preview)
    if not output.confirm(question):
        output.note("nothing removed")
        raise click.exceptions.Exit(ExitCode.FAILURE)
