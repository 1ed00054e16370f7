"""The checks of a soak. Each yields one line per problem."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tests.soak.evidence import (
    CORRECT,
    DISCONNECTED,
    WRONG,
    Evidence,
    Fault,
    FaultKind,
    Inventory,
    Outcome,
    WorkerLoad,
)

# How much resident memory may grow from the third to the fourth quarter. Allocators keep freed memory, and a worker's
# buffers and prefix cache grow to their limits during the first minutes.
MAX_GROWTH_SHARE = 0.03
MAX_GROWTH_BYTES = {"the daemon": 4_000_000, "a worker": 20_000_000}

# An error can precede the record of its cause by a moment. Repeated crashes delay the next load by up to a minute.
TOLERANCE_SECONDS = 1.0
BACKOFF_SECONDS = 65.0

# The reserved memory of an idle worker varies with what MLX needed while loading. A sequence reserves more than this.
RESERVED_TOLERANCE_BYTES = 100_000

SLOW_READER = "read_slowly", "slow_client"
"""The only kind of request whose client causes an error itself, and that error."""

MAX_EXAMPLES = 5


def find_problems(evidence: Evidence) -> list[str]:
    checks: Sequence[Callable[[Evidence], Iterator[str]]] = (
        check_responses,
        check_errors,
        check_coverage,
        check_leaks,
        check_loads,
        check_memory,
        check_log,
        check_restarts,
    )
    return [problem for check in checks for problem in check(evidence)]


def check_responses(evidence: Evidence) -> Iterator[str]:
    """Report responses that differ from the expected ones."""
    wrong = [outcome for outcome in evidence.outcomes if outcome.result == WRONG]
    yield from limit_examples(f"{outcome.kind} for {outcome.model}: {outcome.detail}" for outcome in wrong)


def check_errors(evidence: Evidence) -> Iterator[str]:
    """Report errors that no fault explains."""
    unexplained = [
        outcome
        for outcome in evidence.outcomes
        if outcome.result not in (CORRECT, WRONG, DISCONNECTED)
        and (outcome.kind, outcome.result) != SLOW_READER
        and not any(explains(fault, outcome) for fault in evidence.faults)
    ]
    yield from limit_examples(
        f"{outcome.kind} for {outcome.model} failed with {outcome.result} without a cause: {outcome.detail}"
        for outcome in unexplained
    )


def explains(fault: Fault, outcome: Outcome) -> bool:
    """Whether the fault can have caused the outcome."""
    # A pinned model can keep any other model from loading.
    if fault.model is not None and fault.model != outcome.model and fault.kind is not FaultKind.PIN:
        return False
    started, ended = fault.started - TOLERANCE_SECONDS, fault.ended + TOLERANCE_SECONDS
    overlaps = started <= outcome.ended and outcome.started <= ended
    match outcome.result, fault.kind:
        case "worker_crashed", FaultKind.KILL:
            in_backoff = "repeatedly" in outcome.detail
            return overlaps or (in_backoff and started <= outcome.ended <= ended + BACKOFF_SECONDS)
        case ("model_unloaded", FaultKind.UNLOAD) | ("insufficient_memory", FaultKind.PIN):
            return overlaps
        case "queue_full", FaultKind.SHORT_QUEUE:
            # A worker keeps the limit with which it was loaded.
            return started <= outcome.ended
    return False


def check_coverage(evidence: Evidence) -> Iterator[str]:
    """Report kinds of requests that never succeeded: the soak shows nothing about them."""
    succeeded = {outcome.kind for outcome in evidence.outcomes if outcome.result in (CORRECT, DISCONNECTED)}
    for kind in sorted({outcome.kind for outcome in evidence.outcomes} - succeeded):
        yield f"no request of the kind {kind} succeeded"
    if not evidence.outcomes:
        yield "no request was sent"


def check_leaks(evidence: Evidence) -> Iterator[str]:
    """Report the descriptors, tasks and processes that the load phase has left behind."""
    before, after = evidence.before, evidence.after
    if before is None or after is None:
        yield "there is no inventory of the daemon"
        return
    yield from compare(before, after, "descriptors")
    yield from compare(before, after, "tasks")
    if after.processes:
        yield f"processes left over: {', '.join(after.processes)}"


def compare(before: Inventory, after: Inventory, name: str) -> Iterator[str]:
    leaked: Counter[str] = getattr(after, name) - getattr(before, name)
    if leaked:
        yield f"{name} leaked: {', '.join(f'{count} of {kind}' for kind, count in leaked.items())}"


def check_loads(evidence: Evidence) -> Iterator[str]:
    """Report requests and reservations of workers that should be idle."""
    idle = {load.model: load for load in evidence.idle_loads}
    if not evidence.final_loads:
        yield "the loads of the workers are unknown"
    for load in evidence.final_loads:
        if load.in_flight or load.waiting:
            yield f"{load.model} has {load.in_flight} requests in flight and {load.waiting} waiting"
        leaked = load.reserved_bytes - idle.get(load.model, WorkerLoad(load.model, 0, 0, 0)).reserved_bytes
        if leaked > RESERVED_TOLERANCE_BYTES:
            yield f"{load.model} has {leaked} bytes reserved without a request"


def check_memory(evidence: Evidence) -> Iterator[str]:
    """Report resident memory that still grows in the second half."""
    survivor = [sample.worker_bytes.get(evidence.survivor_pid) for sample in evidence.samples]
    series = {
        "the daemon": [sample.daemon_bytes for sample in evidence.samples],
        "a worker": [nbytes for nbytes in survivor if nbytes is not None],
    }
    for name, values in series.items():
        third, fourth = quarter_medians(values)[2:]
        if not third or not fourth:
            yield f"the memory of {name} is unknown"
        elif fourth > third * (1 + MAX_GROWTH_SHARE) + MAX_GROWTH_BYTES[name]:
            yield f"{name} grows: {third / 1e6:.1f} MB in the third quarter, {fourth / 1e6:.1f} MB in the fourth"


def quarter_medians(values: Sequence[float]) -> list[float]:
    """Return the median of each quarter of a series, 0 for an empty one."""
    bounds = [len(values) * part // 4 for part in range(5)]
    parts = [values[first:last] for first, last in itertools.pairwise(bounds)]
    return [statistics.median(part) if part else 0 for part in parts]


def check_log(evidence: Evidence) -> Iterator[str]:
    """Report errors in the daemon's log, except for workers that the operator killed."""
    kills = Counter(fault.model for fault in evidence.faults if fault.kind is FaultKind.KILL)
    unexplained = []
    for line in evidence.log:
        if line.get("event") == "worker lost" and "SIGKILL" in line.get("reason", "") and kills[line["model"]]:
            kills[line["model"]] -= 1
        elif line.get("level") in ("error", "critical") or line.get("event") == "plain text":
            unexplained.append(line)
    yield from limit_examples(f"the daemon logged {line}" for line in unexplained)


def check_restarts(evidence: Evidence) -> Iterator[str]:
    if len(evidence.instances) != 1:
        yield f"the daemon restarted: {len(evidence.instances)} instances"


def summarize_latency(latencies: Sequence[float]) -> tuple[float, float]:
    """Return the maximum and the 99th percentile, NaN for an empty series."""
    if not latencies:
        return math.nan, math.nan
    return max(latencies), sorted(latencies)[int(len(latencies) * 0.99)]


def limit_examples(problems: Iterator[str]) -> Iterator[str]:
    examples = list(problems)
    yield from examples[:MAX_EXAMPLES]
    if len(examples) > MAX_EXAMPLES:
        yield f"... and {len(examples) - MAX_EXAMPLES} more"
