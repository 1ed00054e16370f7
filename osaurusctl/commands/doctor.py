"""The doctor command: run all checks and print what to fix."""

import click

from osaurusctl import stores
from osaurusctl.client import connect
from osaurusctl.command import Command, can_prompt
from osaurusctl.doctor.check import Check, Verdict
from osaurusctl.errors import ExitCode
from osaurusctl.output import Output
from osaurusd.wire import paths


@click.command("doctor", cls=Command, examples=["osaurusctl doctor"])
@click.pass_obj
def doctor(output: Output) -> None:
    """Diagnose problems and suggest fixes

    On a terminal, offers to serve the models of other programs that it finds.
    Exits with code 1 if a check fails. Warnings do not count.
    """
    from osaurusctl.doctor import checks  # noqa: PLC0415 - importing psutil is slow

    context = checks.collect_context(paths.resolve())
    results = checks.run_checks(context)
    failed = any(check.verdict is Verdict.FAILURE for check in results)
    output.show({"ok": not failed, "checks": results}, "\n".join(map(_format_check, results)))
    if context.config is not None and can_prompt(output):
        stores.offer(context.paths.config_file, connect(), output)
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILURE)


def _format_check(check: Check) -> str:
    line = f"{check.verdict:<8} {check.name}: {' '.join(check.detail.split())}"
    return f"{line}\n         -> {check.fix}" if check.fix else line
