"""Show long-running work: a progress bar on a terminal, otherwise one line for each stage; JSON lines with --json."""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from osaurusctl.client import Client
from osaurusctl.errors import CliError, Interrupted, InvalidReply, error_from_body
from osaurusctl.formatting import format_duration
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.admin import (
    ImportDone,
    ImportErrorEvent,
    ImportProgress,
    VerifyDone,
    VerifyEvent,
    VerifyFailed,
    VerifyProgress,
)
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.imports import ImportNote, ImportStreamEvent, QuantizeDone, QuantizeEvent
from osaurusd.wire.pulls import PullDone, PullEnded, PullEvent, PullInfo, PullStage, PullState
from osaurusd.wire.sizes import format_bytes

Done = TypeVar("Done", ImportDone, QuantizeDone, VerifyDone)

_WorkEvent = ImportStreamEvent | QuantizeEvent | VerifyEvent


@dataclass(frozen=True)
class _Update:
    """The progress of one piece of work.

    `bar` identifies the progress bar, `label` is the text before it and `detail` the text after it. `messages` are the
    lines of the line reporter, by a key that is printed only once.
    """

    bar: str
    label: str
    done: int
    total: int
    messages: tuple[tuple[str, str], ...]
    detail: str = ""


_Reporter = Callable[[_Update], None]


def follow(events: Generator[_WorkEvent, None, None], output: Output, done_type: type[Done]) -> Done:
    """Show an import, a quantization or a verification until it ends. Leaving early closes `events` and cancels it.

    Raises:
        CliError: the work failed, or the stream of events ended early.
    """
    with contextlib.closing(events), _reporter(output, estimate_time=True) as report:
        for event in events:
            if isinstance(event, done_type):
                return event
            match event:
                case ImportProgress() | VerifyProgress():
                    output.event(event)
                    report(_work_update(event))
                case ImportNote(text=text):
                    output.event(event)
                    output.note(text)
                case ImportErrorEvent(error=error) | VerifyFailed(error=error):
                    raise error_from_body(error)
    raise InvalidReply("the stream of events ended without a result")


def follow_pulls(client: Client, pulls: Sequence[str], output: Output) -> list[PullEnded]:
    """Show downloads until all have ended, and print those that are complete; return the others. Ctrl-C cancels them.

    Raises:
        CliError: the stream of events ended early.
        Interrupted: the user cancelled the downloads.
    """
    try:
        return _follow_pulls(client.watch_pulls(pulls), len(pulls), output)
    except KeyboardInterrupt as error:
        for pull in pulls:
            # The download may have ended in the meantime.
            with contextlib.suppress(CliError):
                client.cancel_pull(pull)
        raise Interrupted("download cancelled; pull again to resume it") from error


def _follow_pulls(events: Generator[PullEvent, None, None], count: int, output: Output) -> list[PullEnded]:
    failed: list[PullEnded] = []
    complete = 0
    with contextlib.closing(events), _reporter(output) as report:
        for event in events:
            report(_pull_update(event.pull))
            if isinstance(event, PullDone):
                complete += 1
                model = event.model
                output.show(event, f"{model.name} downloaded ({format_bytes(model.bytes)}, {event.pull.repo})")
            else:
                output.event(event)
            if isinstance(event, PullEnded):
                failed.append(event)
    if complete + len(failed) < count:
        raise InvalidReply("the daemon stopped during the download; it resumes when the daemon starts again")
    return failed


def pull_error(ended: PullEnded) -> CliError:
    """Build the error for a download that ended without a model."""
    pull = ended.pull
    if pull.error is not None:
        error = error_from_body(pull.error)
        if error.body.code == ErrorCode.MODEL_NOT_FOUND:
            error.hint = 'run "osaurusctl search WORDS" to search the hub'
        return error
    if pull.state is PullState.DONE:
        return CliError(f"{pull.name} was downloaded, but has been removed since")
    return CliError(
        f"the download of {pull.name} was cancelled", hint=f'run "osaurusctl pull {pull.name}" to resume it'
    )


def pull_status(pull: PullInfo) -> str:
    """The stage of a running download, otherwise its state."""
    return str(pull.stage) if pull.stage and pull.state is PullState.RUNNING else str(pull.state)


@contextlib.contextmanager
def spinner(output: Output, text: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that work is in progress, and for how long, while the block runs.

    Yields a function that changes the text.
    """
    if not output.shows_progress:
        yield lambda _: None
        return
    from rich import progress as rich  # noqa: PLC0415 - see `_bar_reporter`
    from rich.console import Console  # noqa: PLC0415

    columns = (rich.SpinnerColumn(), rich.TextColumn("{task.description}", markup=False), rich.TimeElapsedColumn())
    console = Console(stderr=True)
    with rich.Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        task = bars.add_task(text, total=None)
        yield lambda text: bars.update(task, description=text)


def _work_update(event: ImportProgress | VerifyProgress) -> _Update:
    stage, label = (event.stage, event.stage) if isinstance(event, ImportProgress) else ("hashing", event.file)
    message = f"{stage} ({format_bytes(event.total)})" if event.total else stage
    return _Update(bar=stage, label=label, done=event.done, total=event.total, messages=((stage, message),))


def _pull_update(pull: PullInfo) -> _Update:
    status = pull_status(pull)
    message = f"{pull.name}: {status}"
    if pull.stage is PullStage.DOWNLOADING and pull.total:
        partial = f", {format_bytes(pull.done)} already downloaded" if pull.done else ""
        message += f" ({format_bytes(pull.total)}{partial})"
    messages = [(f"{pull.name} {status}", message), *([(f"{pull.name} {pull.note}", pull.note)] if pull.note else [])]
    verifying = pull.stage is PullStage.VERIFYING
    return _Update(
        bar=pull.id,
        label=pull.name if pull.stage in (None, PullStage.DOWNLOADING) else f"{pull.name} {status}",
        done=pull.hashed if verifying else pull.done,
        total=pull.to_hash if verifying else pull.total,
        messages=tuple(messages),
        detail=pull.note or _pull_rate(pull),
    )


def _pull_rate(pull: PullInfo) -> str:
    if pull.stage is not PullStage.DOWNLOADING or not pull.bytes_per_second:
        return ""
    left = "" if pull.seconds_left is None else f", {format_duration(pull.seconds_left)} left"
    return f"{format_bytes(int(pull.bytes_per_second))}/s{left}"


def _reporter(output: Output, *, estimate_time: bool = False) -> contextlib.AbstractContextManager[_Reporter]:
    if output.json:
        return contextlib.nullcontext(lambda _: None)
    if is_terminal(sys.stderr):
        return _bar_reporter(estimate_time=estimate_time)
    return contextlib.nullcontext(_line_reporter(output))


def _line_reporter(output: Output) -> _Reporter:
    printed: set[str] = set()

    def report(update: _Update) -> None:
        for key, text in update.messages:
            if key not in printed:
                printed.add(key)
                output.note(text)

    return report


@contextlib.contextmanager
def _bar_reporter(*, estimate_time: bool) -> Iterator[_Reporter]:
    # Importing rich takes longer than running `osaurusctl ls`.
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    label = rich.TextColumn("{task.description}", markup=False)
    detail = rich.TextColumn("{task.fields[detail]}", markup=False)
    last = rich.TimeRemainingColumn() if estimate_time else detail
    with rich.Progress(label, rich.BarColumn(), rich.DownloadColumn(), last, console=Console(stderr=True)) as bars:
        tasks: dict[str, rich.TaskID] = {}

        def report(update: _Update) -> None:
            total = update.total or None
            if update.bar not in tasks:
                tasks[update.bar] = bars.add_task(update.label, total=total, detail="")
            task = tasks[update.bar]
            bars.update(task, description=update.label, completed=update.done, total=total, detail=update.detail)

        yield report
