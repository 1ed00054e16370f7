"""Workers as rows of a table."""

from osaurusctl.layout import age, size
from osaurusd.wire.admin import WorkerInfo, WorkerState

HEADER = ("MODEL", "STATE", "MEMORY", "ESTIMATED", "IN FLIGHT", "TOK/S", "PINNED", "UNLOADS IN", "DEVICE", "PID")


def row(worker: WorkerInfo) -> tuple[str, ...]:
    """The cells below `HEADER`."""
    return (
        worker.model,
        worker.state,
        size(worker.memory_bytes),
        size(worker.estimated_bytes) if worker.estimated_bytes else "-",
        f"{worker.in_flight} (+{worker.waiting} waiting)" if worker.waiting else str(worker.in_flight),
        f"{worker.tokens_per_second:.1f}" if worker.tokens_per_second else "-",
        "yes" if worker.pinned else "-",
        _left(worker),
        worker.device or "-",
        "-" if worker.pid is None else str(worker.pid),
    )


def last_exit(worker: WorkerInfo) -> list[str]:
    """How the worker before this one died, if it did."""
    if not worker.last_exit:
        return []
    first, *more = worker.last_exit.splitlines()
    return [f"{worker.model}: {first}", *(f"  {line}" for line in more)]


def _left(worker: WorkerInfo) -> str:
    if worker.state is not WorkerState.READY or worker.in_flight:
        return "-"
    return "never" if worker.idle_left_seconds is None else age(worker.idle_left_seconds)
