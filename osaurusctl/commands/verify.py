from collections import Counter

import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import Exit, Interrupted
from osaurusctl.layout import size, table
from osaurusctl.output import Output
from osaurusctl.progress import follow_verification
from osaurusd.wire.admin import FileState, VerifyDone

_BROKEN = (FileState.CHANGED, FileState.MISSING)


@click.command("verify", cls=Command)
@click.argument("name", shell_complete=complete.known)
@click.pass_context
def command(ctx: click.Context, name: str) -> None:
    """Compare every file of the model NAME with what was recorded of it.

    A file that is changed or missing makes the exit code 1.
    """
    output = ctx.ensure_object(Output)
    try:
        done = follow_verification(connect().verify(name), output)
    except KeyboardInterrupt as error:
        raise Interrupted("the verification is cancelled") from error
    output.show(done, _describe(done))
    if any(file.state in _BROKEN for file in done.files):
        ctx.exit(Exit.FAILURE)


def _describe(done: VerifyDone) -> str:
    rows = [(file.state, size(file.bytes), file.name) for file in done.files if file.state is not FileState.INTACT]
    lines = [table(rows)] if rows else []
    return "\n".join([*lines, f"{done.model}: {_summary(done)}"])


def _summary(done: VerifyDone) -> str:
    counts = Counter(file.state for file in done.files)
    files = "file" if len(done.files) == 1 else "files"
    others = [f"{counts[state]} {state}" for state in FileState if state is not FileState.INTACT and counts[state]]
    return ", ".join([f"{counts[FileState.INTACT]} of {len(done.files)} {files} intact", *others])
