"""How commands show models that run on several hosts: their ranks, and the memory that this host lends to others."""

from collections.abc import Sequence

from osaurusctl.formatting import format_table
from osaurusd.wire.admin import WorkerInfo
from osaurusd.wire.groups import RankInfo
from osaurusd.wire.sizes import format_bytes

THIS_HOST = "this host"

_HEADER = ("MODEL", "RANK", "HOST", "STATE", "MEMORY", "RESIDENT", "STEP", "BEHIND", "ROUND TRIP")
_DROP = ("ROUND TRIP", "STEP", "RESIDENT", "BEHIND")


def format_ranks(workers: Sequence[WorkerInfo], width: int | None) -> list[str]:
    """Return a table of all ranks, and a line for each lease; empty if no model runs on several hosts."""
    rows = [_row(worker.model, rank) for worker in workers for rank in worker.ranks]
    table = ["", format_table([_HEADER, *rows], width=width, drop=_DROP)] if rows else []
    leases = [describe_lease(worker) for worker in workers if worker.lease is not None]
    return [*table, *(["", "lent to other hosts:", *leases] if leases else [])]


def describe_hosts(worker: WorkerInfo) -> str:
    """Return where the other ranks of a model run, after a comma; empty if it runs in one process."""
    hosts = [rank.host for rank in worker.ranks if rank.host is not None]
    return f", with {', '.join(hosts)}" if hosts else ""


def describe_lease(worker: WorkerInfo) -> str:
    """Describe a rank that this host runs for another one."""
    assert worker.lease is not None
    lease = worker.lease
    part = f"rank {lease.rank} of {lease.size}, {lease.split}"
    return f"{worker.model} ({part}): {format_bytes(worker.needs_bytes)} for host {lease.owner}"


def _row(model: str, rank: RankInfo) -> tuple[str, ...]:
    return (
        model,
        str(rank.rank),
        rank.host or THIS_HOST,
        rank.state,
        format_bytes(rank.needs_bytes),
        format_bytes(rank.memory_bytes) if rank.memory_bytes else "-",
        str(rank.plan),
        str(rank.behind),
        "-" if rank.round_trip_seconds is None else f"{rank.round_trip_seconds * 1000:.1f} ms",
    )
