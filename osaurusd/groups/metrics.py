"""Prometheus metrics of ranks and of the connections with their hosts, and of the memory that this host lends."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.wire.admin import WorkerInfo
from osaurusd.wire.groups import RankInfo

_RANK = ("model", "rank", "host")
_LEASE = ("model", "owner")

LOCAL_HOST = "localhost"
"""The label of this host."""


class RankCollector(Collector):
    """Gauges that are read at each scrape.

    Args:
        models: returns the models of this host.
        leases: returns the ranks that this host runs for others.
    """

    def __init__(
        self, models: Callable[[], Iterable[WorkerSnapshot]], leases: Callable[[], Iterable[WorkerInfo]]
    ) -> None:
        self._models = models
        self._leases = leases

    def describe(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Name the series, so that registering them does not read the pool."""
        return self._families([], [])

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        ranks = [(model.name, rank) for model in self._models() for rank in model.ranks]
        return self._families(ranks, list(self._leases()))

    def _families(
        self, ranks: list[tuple[str, RankInfo]], leases: list[WorkerInfo]
    ) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        def by_rank(name: str, help_text: str, read: Callable[[RankInfo], float | None]) -> GaugeMetricFamily:
            family = GaugeMetricFamily(name, help_text, labels=_RANK)
            for model, rank in ranks:
                if (value := read(rank)) is not None:
                    family.add_metric(_labels(model, rank), value)
            return family

        yield by_rank("osaurus_rank_memory_bytes", "Memory that a rank uses.", lambda rank: rank.memory_bytes)
        yield by_rank("osaurus_rank_steps_behind", "Steps that a rank has not executed yet.", lambda rank: rank.behind)
        yield by_rank(
            "osaurus_rank_round_trip_seconds",
            "Round-trip time between this daemon and that of a rank.",
            lambda rank: rank.round_trip_seconds,
        )
        sent = CounterMetricFamily("osaurus_rank_sent_bytes", "Bytes sent to the daemon of a rank.", labels=_RANK)
        for model, rank in ranks:
            if rank.host is not None:
                sent.add_metric(_labels(model, rank), rank.sent_bytes)
        yield sent
        lent = GaugeMetricFamily("osaurus_lent_bytes", "Memory that this host lends to others.", labels=_LEASE)
        for lease in leases:
            if lease.lease is not None:
                lent.add_metric([lease.model, lease.lease.owner], lease.needs_bytes)
        yield lent


def _labels(model: str, rank: RankInfo) -> list[str]:
    return [model, str(rank.rank), rank.host or LOCAL_HOST]
