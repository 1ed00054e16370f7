import click

from osaurusctl.command import Command
from osaurusctl.doctor import examine
from osaurusctl.doctor.check import Check, Verdict
from osaurusctl.errors import Exit
from osaurusctl.output import Output
from osaurusd.wire import paths


@click.command("doctor", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Look at everything that the daemon needs, and say how to mend what is amiss."""
    checks = examine.examine(paths.resolve())
    failed = any(check.verdict is Verdict.FAILURE for check in checks)
    output.show({"ok": not failed, "checks": checks}, "\n".join(map(_shown, checks)))
    if failed:
        raise click.exceptions.Exit(Exit.FAILURE)


def _shown(check: Check) -> str:
    line = f"{check.verdict:<8} {check.name}: {' '.join(check.found.split())}"
    return f"{line}\n         -> {check.fix}" if check.fix else line
