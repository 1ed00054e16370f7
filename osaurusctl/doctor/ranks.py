"""Checks of models that run on several hosts."""

from collections.abc import Iterator

from osaurusctl.doctor.check import Check, Context, ok, warning
from osaurusd.wire.admin import WorkerInfo, WorkerState
from osaurusd.wire.groups import RankInfo

_NAME = "ranks"
_SLOW_SECONDS = 0.05
"""Each generated token needs several messages between the hosts, and has to wait for them."""


def check_ranks(context: Context) -> Iterator[Check]:
    """Check the connections with the ranks of models that are loaded now."""
    if context.status is None:
        return
    for worker in context.status.workers:
        if worker.state is WorkerState.READY and worker.ranks:
            yield from _check_model(worker)


def _check_model(worker: WorkerInfo) -> Iterator[Check]:
    slow = [rank for rank in worker.ranks if (rank.round_trip_seconds or 0) > _SLOW_SECONDS]
    if slow:
        detail = f"{worker.model}: slow connection to {', '.join(map(_describe, slow))}"
        yield warning(_NAME, detail, 'check the network with "osaurusctl host check"')
    else:
        hosts = ", ".join(_describe(rank) for rank in worker.ranks if rank.host is not None)
        yield ok(_NAME, f"{worker.model} runs here and on {hosts}")


def _describe(rank: RankInfo) -> str:
    trip = "" if rank.round_trip_seconds is None else f" ({rank.round_trip_seconds * 1000:.1f} ms)"
    return f"{rank.host}{trip}"
