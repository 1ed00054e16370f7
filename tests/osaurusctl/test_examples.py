"""The examples in the help and in the documents are valid command lines."""

import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

from osaurusctl.cli import COMMANDS, root

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTS = ("cli.md", "service.md")


def help_examples():
    context = click.Context(root, **root.context_settings)
    for name in COMMANDS:
        command = root.get_command(context, name)
        commands = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *commands):
            yield from each.examples


def document_examples():
    for document in DOCUMENTS:
        for block in re.findall(r"^```\w*\n(.*?)^```", (DOCS / document).read_text(), re.MULTILINE | re.DOTALL):
            yield from (line for line in block.splitlines() if re.search(r"\bosaurusctl\b", line))


def arguments_of(example):
    """Return the arguments of the `osaurusctl` call in a shell command line."""
    lexer = shlex.shlex(example.replace('"$(', "$(").replace(')"', ")"), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    arguments = words[words.index("osaurusctl") + 1 :]
    return list(itertools.takewhile(lambda word: word not in ("|", ">", ")"), arguments))


def parse(arguments):
    context = click.Context(root, **root.context_settings)
    name, *rest = arguments
    command = root.get_command(context, name)
    assert command, f"unknown command {name}"
    if isinstance(command, click.Group):
        command = command.get_command(context, rest.pop(0))
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("example", dict.fromkeys([*help_examples(), *document_examples()]))
def test_example_is_a_valid_command_line(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "main.py", "photo.jpg"):
        (tmp_path / name).touch()
    parse(arguments_of(example))
