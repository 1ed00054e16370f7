"""How long work is shown while it runs: a bar on a terminal, a line a stage elsewhere, JSON lines on request."""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator

from osaurusctl.errors import BrokenReply, from_body
from osaurusctl.layout import size
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.admin import (
    ImportDone,
    ImportEvent,
    ImportProgress,
    ImportRefused,
    VerifyDone,
    VerifyEvent,
    VerifyFailed,
    VerifyProgress,
)

Progress = ImportProgress | VerifyProgress
Reporter = Callable[[Progress], None]


def follow_import(events: Generator[ImportEvent, None, None], output: Output) -> ImportDone:
    """Show an import until it ends; leaving early, in whatever way, cancels it.

    Raises:
        CliError: the daemon refused it, or its reply broke off.
    """
    with contextlib.closing(events), _reporter(output) as report:
        for event in events:
            match event:
                case ImportProgress():
                    report(event)
                case ImportRefused(error=error):
                    raise from_body(error)
                case ImportDone():
                    return event
    raise BrokenReply("the import ended without a result")


def follow_verification(events: Generator[VerifyEvent, None, None], output: Output) -> VerifyDone:
    """Show a verification until it ends; leaving early, in whatever way, cancels it.

    Raises:
        CliError: it could not be carried out, or the daemon's reply broke off.
    """
    with contextlib.closing(events), _reporter(output) as report:
        for event in events:
            match event:
                case VerifyProgress():
                    report(event)
                case VerifyFailed(error=error):
                    raise from_body(error)
                case VerifyDone():
                    return event
    raise BrokenReply("the verification ended without a result")


def _stage(event: Progress) -> str:
    return event.stage if isinstance(event, ImportProgress) else "hashing"


def _reporter(output: Output) -> contextlib.AbstractContextManager[Reporter]:
    if output.json:
        return contextlib.nullcontext(output.event)
    return _bars() if is_terminal(sys.stderr) else contextlib.nullcontext(_stage_lines(output))


def _stage_lines(output: Output) -> Reporter:
    seen = set()

    def report(event: Progress) -> None:
        if (stage := _stage(event)) not in seen:
            seen.add(stage)
            output.note(f"{stage} ({size(event.total)})" if event.total else stage)

    return report


@contextlib.contextmanager
def _bars() -> Iterator[Reporter]:
    # rich takes longer to import than a whole `osaurusctl ls` takes to run.
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    label = rich.TextColumn("{task.description}", markup=False)
    columns = (label, rich.BarColumn(), rich.DownloadColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def report(event: Progress) -> None:
            if (stage := _stage(event)) not in tasks:
                tasks[stage] = bars.add_task(stage, total=event.total or None)
            bars.update(tasks[stage], description=_label(event), completed=event.done, total=event.total or None)

        yield report


def _label(event: Progress) -> str:
    return event.stage if isinstance(event, ImportProgress) else event.file
