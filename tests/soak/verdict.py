"""What is wrong with what a soak has seen: a reason a line, and none if all is well."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tests.soak.evidence import LEFT, RIGHT, WRONG, Evidence, Fault, FaultKind, Inventory, Load, Outcome

# How far resident memory may rise from the third quarter to the fourth: allocators keep some of what they were given,
# and a worker's buffers and kept prompts fill up to their limits for some minutes.
GROWTH_SHARE = 0.03
GROWTH_BYTES = {"the daemon": 4_000_000, "a worker": 20_000_000}

# An error may come a moment before whoever caused it has noted that, and long after: a model that dies repeatedly is
# left alone for up to a minute.
MOMENT_SECONDS = 1.0
BACKOFF_SECONDS = 65.0

# What a worker says it has reserved differs by what MLX needs while it loads; a sequence reserves more.
RESERVED_BYTES = 100_000

DAWDLED = "reads_slowly", "slow_client"
"""The kind of request whose client may lose its answer by its own doing, and the error that it gets."""

MOST_SHOWN = 5


def reasons(evidence: Evidence) -> list[str]:
    """Everything that is wrong."""
    checks: Sequence[Callable[[Evidence], Iterator[str]]] = (
        wrong_answers,
        unexplained_errors,
        nothing_asked,
        leaks,
        unfinished,
        growth,
        error_lines,
        restarts,
    )
    return [reason for check in checks for reason in check(evidence)]


def wrong_answers(evidence: Evidence) -> Iterator[str]:
    """Requests that were answered, but not as they had to be."""
    wrong = [outcome for outcome in evidence.outcomes if outcome.result == WRONG]
    yield from _some(f"{outcome.kind} of {outcome.model}: {outcome.detail}" for outcome in wrong)


def unexplained_errors(evidence: Evidence) -> Iterator[str]:
    """Errors that nothing which was done can have caused."""
    failed = [outcome for outcome in evidence.outcomes if outcome.result not in (RIGHT, WRONG, LEFT)]
    unexplained = [
        outcome
        for outcome in failed
        if (outcome.kind, outcome.result) != DAWDLED and not any(_explains(fault, outcome) for fault in evidence.faults)
    ]
    yield from _some(
        f"{outcome.kind} of {outcome.model} ended with {outcome.result}, and nobody had caused it: {outcome.detail}"
        for outcome in unexplained
    )


def _explains(fault: Fault, outcome: Outcome) -> bool:
    if fault.model is not None and fault.model != outcome.model and fault.kind is not FaultKind.PIN:
        return False
    began, ended = fault.began - MOMENT_SECONDS, fault.ended + MOMENT_SECONDS
    during = began <= outcome.ended and outcome.began <= ended
    match outcome.result, fault.kind:
        case "worker_crashed", FaultKind.KILL:
            again = "repeatedly" in outcome.detail
            return during or (again and began <= outcome.ended <= ended + BACKOFF_SECONDS)
        case ("model_unloaded", FaultKind.UNLOAD) | ("insufficient_memory", FaultKind.PIN):
            return during
        case "queue_full", FaultKind.SHORT_QUEUE:
            # A worker keeps what it was told when it was loaded.
            return began <= outcome.ended
    return False


def nothing_asked(evidence: Evidence) -> Iterator[str]:
    """Kinds of requests of which none was ever answered: then nothing has been shown about them."""
    ended = Counter[str](outcome.kind for outcome in evidence.outcomes if outcome.result in (RIGHT, LEFT))
    for kind in sorted({outcome.kind for outcome in evidence.outcomes} - ended.keys()):
        yield f"not one request was answered of the kind {kind}"
    if not evidence.outcomes:
        yield "no request was made"


def leaks(evidence: Evidence) -> Iterator[str]:
    """What is there afterwards and was not before."""
    before, after = evidence.before, evidence.after
    if before is None or after is None:
        yield "it was not looked at what the daemon has"
        return
    for what, more in (("descriptors", _more(before, after, "descriptors")), ("tasks", _more(before, after, "tasks"))):
        if more:
            yield f"{what} leaked: {', '.join(f'{count} of {kind}' for kind, count in more.items())}"
    if after.processes:
        yield f"processes left over: {', '.join(after.processes)}"


def _more(before: Inventory, after: Inventory, what: str) -> Counter[str]:
    return getattr(after, what) - getattr(before, what)


def unfinished(evidence: Evidence) -> Iterator[str]:
    """Requests and reservations that workers still have though nobody asks anything."""
    usual = {load.model: load for load in evidence.resting}
    if not evidence.loads:
        yield "it was not looked at what workers have under way"
    for load in evidence.loads:
        if load.in_flight or load.waiting:
            yield f"{load.model} has {load.in_flight} requests in flight and {load.waiting} waiting"
        more = load.reserved_bytes - usual.get(load.model, Load(load.model, 0, 0, 0)).reserved_bytes
        if more > RESERVED_BYTES:
            yield f"{load.model} has {more} bytes reserved for nobody"


def growth(evidence: Evidence) -> Iterator[str]:
    """Resident memory that still rises in the second half."""
    series = {"the daemon": [sample.daemon_bytes for sample in evidence.samples]}
    survivor = [sample.worker_bytes.get(evidence.survivor) for sample in evidence.samples]
    series["a worker"] = [nbytes for nbytes in survivor if nbytes is not None]
    for who, values in series.items():
        third, fourth = quarters(values)[2:]
        if not third or not fourth:
            yield f"the memory of {who} was not looked at"
        elif fourth > third * (1 + GROWTH_SHARE) + GROWTH_BYTES[who]:
            yield f"{who} grows: {third / 1e6:.1f} MB in the third quarter, {fourth / 1e6:.1f} MB in the fourth"


def quarters(values: Sequence[float]) -> list[float]:
    """The median of each quarter of a series; 0 where there is none."""
    bounds = [len(values) * part // 4 for part in range(5)]
    parts = [values[first:last] for first, last in itertools.pairwise(bounds)]
    return [statistics.median(part) if part else 0 for part in parts]


def error_lines(evidence: Evidence) -> Iterator[str]:
    """What the daemon logged as an error, but for the ends of workers that were killed."""
    kills = Counter(fault.model for fault in evidence.faults if fault.kind is FaultKind.KILL)
    unexplained = []
    for line in evidence.log:
        if line.get("event") == "worker lost" and "SIGKILL" in line.get("reason", "") and kills[line["model"]]:
            kills[line["model"]] -= 1
        elif line.get("level") in ("error", "critical") or line.get("event") == "plain text":
            unexplained.append(line)
    yield from _some(f"the daemon logged {line}" for line in unexplained)


def restarts(evidence: Evidence) -> Iterator[str]:
    """A daemon that is not the one it was."""
    if len(evidence.instances) != 1:
        yield f"{len(evidence.instances)} daemons answered where there must be one"


def lag(lags: Sequence[float]) -> tuple[float, float]:
    """The largest and the 99th percentile; NaN if nothing was measured."""
    if not lags:
        return math.nan, math.nan
    return max(lags), sorted(lags)[int(len(lags) * 0.99)]


def _some(lines: Iterator[str]) -> Iterator[str]:
    found = list(lines)
    yield from found[:MOST_SHOWN]
    if len(found) > MOST_SHOWN:
        yield f"... and {len(found) - MOST_SHOWN} more like these"
