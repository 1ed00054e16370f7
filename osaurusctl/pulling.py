"""How downloads are shown while they run: a bar each on a terminal, a line a stage elsewhere, JSON lines on request."""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator

from osaurusctl.errors import BrokenReply, CliError, from_body
from osaurusctl.layout import age, size
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullDone, PullEnded, PullEvent, PullInfo, PullStage, PullState

Reporter = Callable[[PullInfo], None]


def follow(events: Generator[PullEvent, None, None], count: int, output: Output) -> list[PullEnded]:
    """Show pulls until all `count` of them have ended, and say of each that is done that it is; returns the others.

    Raises:
        CliError: the daemon's reply broke off.
    """
    ended: list[PullEnded] = []
    done = 0
    with contextlib.closing(events), _reporter(output) as report:
        for event in events:
            report(event.pull)
            if isinstance(event, PullDone):
                done += 1
                model, repo = event.model, event.pull.repo
                output.show(event, f"{model.name} is downloaded ({size(model.bytes)}, {repo})")
            else:
                output.event(event)
            if isinstance(event, PullEnded):
                ended.append(event)
    if done + len(ended) < count:
        raise BrokenReply("the daemon ended before the pull did; it goes on once the daemon runs again")
    return ended


def failure(ended: PullEnded) -> CliError:
    """Why a pull ended without its model."""
    pull = ended.pull
    if pull.error is not None:
        error = from_body(pull.error)
        if error.body.code == ErrorCode.MODEL_NOT_FOUND:
            error.hint = "`osaurusctl search WORDS` asks the hub what there is"
        return error
    if pull.state is PullState.DONE:
        return CliError(f"{pull.name} was downloaded, and is gone again")
    return CliError(
        f"the pull of {pull.name} was cancelled", hint=f"`osaurusctl pull {pull.name}` goes on where it was"
    )


def state(pull: PullInfo) -> str:
    """What a pull does, in a word."""
    return str(pull.stage) if pull.stage and pull.state is PullState.RUNNING else str(pull.state)


def _reporter(output: Output) -> contextlib.AbstractContextManager[Reporter]:
    if output.json:
        return contextlib.nullcontext(lambda _: None)
    return _bars() if is_terminal(sys.stderr) else contextlib.nullcontext(_lines(output))


def _lines(output: Output) -> Reporter:
    seen: set[str] = set()

    def report(pull: PullInfo) -> None:
        shown = f"{pull.name}: {state(pull)}"
        if pull.stage is PullStage.DOWNLOADING and pull.total:
            shown += f" ({size(pull.total)}{f', {size(pull.done)} of it here already' if pull.done else ''})"
        for key, text in ((f"{pull.name} {state(pull)}", shown), (f"{pull.name} {pull.note}", pull.note)):
            if text and key not in seen:
                seen.add(key)
                output.note(text)

    return report


@contextlib.contextmanager
def _bars() -> Iterator[Reporter]:
    # rich takes longer to import than a whole `osaurusctl ls` takes to run.
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    label = rich.TextColumn("{task.description}", markup=False)
    speed = rich.TextColumn("{task.fields[speed]}", markup=False)
    with rich.Progress(label, rich.BarColumn(), rich.DownloadColumn(), speed, console=Console(stderr=True)) as bars:
        tasks: dict[str, rich.TaskID] = {}

        def report(pull: PullInfo) -> None:
            if pull.id not in tasks:
                tasks[pull.id] = bars.add_task(pull.name, total=None, speed="")
            verifying = pull.stage is PullStage.VERIFYING
            done, total = (pull.hashed, pull.to_hash) if verifying else (pull.done, pull.total)
            doing = "" if pull.stage is PullStage.DOWNLOADING else f" {state(pull)}"
            bars.update(
                tasks[pull.id],
                description=f"{pull.name}{doing}",
                completed=done,
                total=total or None,
                speed=pull.note or _speed(pull),
            )

        yield report


def _speed(pull: PullInfo) -> str:
    if pull.stage is not PullStage.DOWNLOADING or not pull.bytes_per_second:
        return ""
    left = "" if pull.seconds_left is None else f", {age(pull.seconds_left)} left"
    return f"{size(int(pull.bytes_per_second))}/s{left}"
