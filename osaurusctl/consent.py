"""Asking before something goes for good."""

import sys

import click

from osaurusctl.errors import Exit
from osaurusctl.output import Output, is_terminal


def needs(yes: bool, output: Output) -> bool:
    """Whether a person is to be asked.

    Raises:
        click.UsageError: one is, and cannot be.
    """
    if yes:
        return False
    if output.json:
        raise click.UsageError("`--json` asks no questions: say `--yes`")
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise click.UsageError("there is no terminal to ask at: say `--yes`")
    return True


def ask(preview: str, question: str, output: Output) -> None:
    """Show what would go, and end the command unless the answer is yes."""
    output.note(preview)
    if not output.ask(question):
        output.note("nothing was removed")
        raise click.exceptions.Exit(Exit.FAILURE)
