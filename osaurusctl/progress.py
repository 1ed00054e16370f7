"""How a running import is shown: a bar on a terminal, a line a stage elsewhere, JSON lines on request."""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator

from osaurusctl.errors import BrokenReply, from_body
from osaurusctl.layout import size
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.admin import ImportDone, ImportEvent, ImportProgress, ImportRefused

Reporter = Callable[[ImportProgress], None]


def follow(events: Generator[ImportEvent, None, None], output: Output) -> ImportDone:
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


def _reporter(output: Output) -> contextlib.AbstractContextManager[Reporter]:
    if output.json:
        return contextlib.nullcontext(output.event)
    return _bars() if is_terminal(sys.stderr) else contextlib.nullcontext(_stage_lines(output))


def _stage_lines(output: Output) -> Reporter:
    seen = set()

    def report(event: ImportProgress) -> None:
        if event.stage not in seen:
            seen.add(event.stage)
            output.note(f"{event.stage} ({size(event.total)})" if event.total else event.stage)

    return report


@contextlib.contextmanager
def _bars() -> Iterator[Reporter]:
    # rich takes longer to import than a whole `osaurusctl ls` takes to run.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    stage = TextColumn("{task.description}", markup=False)
    columns = (stage, BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {}

        def report(event: ImportProgress) -> None:
            if event.stage not in tasks:
                tasks[event.stage] = progress.add_task(event.stage, total=event.total or None)
            progress.update(tasks[event.stage], completed=event.done, total=event.total or None)

        yield report
