"""Manual pages, one for each command, from the help of the commands. `make man` writes them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from osaurusctl.cli import PROGRAM, root


def pages() -> dict[str, str]:
    """Return the content of every page by file name."""
    context = click.Context(root, info_name=PROGRAM, **root.context_settings)
    return {f"{_page_name(each)}.1": _page(each) for each in _contexts(context)}


def write(folder: Path) -> None:
    """Write the pages, and delete those of commands that no longer exist."""
    current = pages()
    for file in folder.glob("*.1"):
        if file.name not in current:
            file.unlink()
    for name, content in current.items():
        (folder / name).write_text(content, encoding="utf-8")


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, "a group has the commands that it lists"
            yield from _contexts(click.Context(command, info_name=name, parent=context))


def _page_name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _page(context: click.Context) -> str:
    command = context.command
    summary, _, description = (command.help or "").replace("\b\n", "").partition("\n\n")
    usage = " ".join(command.collect_usage_pieces(context))
    sections = {
        "NAME": f"{_page_name(context)} \\- {_escape(' '.join(summary.split()))}",
        "SYNOPSIS": f"\\fB{_escape(context.command_path)}\\fR {_escape(usage)}",
        "DESCRIPTION": "\n.PP\n".join(_escape(" ".join(part.split())) for part in description.split("\n\n") if part),
        "OPTIONS": "\n".join(_options(context)),
        "COMMANDS": "\n".join(_commands(context)),
        "EXAMPLES": "\n".join(_examples(command)),
        "EXIT STATUS": _escape(" ".join((root.epilog or "").partition(": ")[2].split())),
        "SEE ALSO": ", ".join(_see_also(context)),
    }
    title = f'.TH "{_page_name(context).upper()}" "1" "" "osaurusd" "osaurusd manual"'
    return "\n".join([title, *(f".SH {name}\n{text}" for name, text in sections.items() if text), ""])


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            names, text = record
            yield f".TP\n\\fB{_escape(names)}\\fR\n{_escape(' '.join(text.split()))}"


def _commands(context: click.Context) -> Iterator[str]:
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, "a group has the commands that it lists"
            yield f".TP\n\\fB{_escape(name)}\\fR\n{_escape(command.get_short_help_str(200))}"


def _examples(command: click.Command) -> Iterator[str]:
    for example in getattr(command, "examples", ()):
        yield f".nf\n{_escape(example)}\n.fi"


def _see_also(context: click.Context) -> Iterator[str]:
    if context.parent is not None:
        yield f"\\fB{_page_name(context.parent)}\\fR(1)"
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            yield f"\\fB{_page_name(context)}-{name}\\fR(1)"


def _escape(text: str) -> str:
    """Escape what roff would interpret."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^\.", "\\&.", escaped, flags=re.MULTILINE)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
