"""Checks of paired hosts, and of the models that run on several hosts."""

from collections.abc import Iterator

from osaurusctl.doctor.check import Check, Context, failure, ok, warning
from osaurusd.wire.admin import WorkerInfo, WorkerState
from osaurusd.wire.groups import RankInfo

_HOSTS = "hosts"
_RANKS = "ranks"

_SLOW_SECONDS = 0.05
"""Each generated token needs several messages between the hosts, and has to wait for them."""


def check_hosts(context: Context) -> Iterator[Check]:
    """Check whether this host accepts others, and whether the paired ones respond."""
    if context.diagnosis is None:
        return
    hosts = context.diagnosis.hosts
    if hosts.fault is not None:
        yield failure(_HOSTS, hosts.fault, "the daemon retries; correct `distributed.listen` if the address is wrong")
    elif hosts.listen:
        yield ok(_HOSTS, f"paired hosts can connect to {', '.join(hosts.endpoints)}")
    for name, reason in hosts.unreachable.items():
        yield warning(_HOSTS, f"{name} is unreachable: {reason}", f'start it, or run "osaurusctl host rm {name}"')
    for name, reason in hosts.unusable_links.items():
        yield failure(
            _HOSTS,
            f"the link address of {name} is unusable: {reason}",
            "set `distributed.link_address` there to an address of a private network",
        )
    responding = hosts.hosts - len(hosts.unreachable)
    if responding:
        yield ok(_HOSTS, f"{responding} of {hosts.hosts} paired hosts respond")


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
        yield warning(_RANKS, detail, 'check the network with "osaurusctl host check"')
    else:
        hosts = ", ".join(_describe(rank) for rank in worker.ranks if rank.host is not None)
        yield ok(_RANKS, f"{worker.model} runs here and on {hosts}")


def _describe(rank: RankInfo) -> str:
    trip = "" if rank.round_trip_seconds is None else f" ({rank.round_trip_seconds * 1000:.1f} ms)"
    return f"{rank.host}{trip}"
