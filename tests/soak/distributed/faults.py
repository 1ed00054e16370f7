"""Faults of hosts, links and ranks. Each ends by itself: afterwards, all daemons run and all links are up."""

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator

import psutil

from tests.distributed.cluster import Cluster
from tests.distributed.hosts import Host

STREAM_SECONDS = 6.0
HANG_SECONDS = 10.0
TIMEOUTS = {
    "stream_timeout_seconds": STREAM_SECONDS,
    "hang_timeout_seconds": HANG_SECONDS,
    "start_timeout_seconds": 60.0,
}
"""`[distributed]` of all hosts: faults are noticed soon."""

SHORT_SECONDS = STREAM_SECONDS / 3
LONG_SECONDS = HANG_SECONDS + 2 * STREAM_SECONDS

Fault = Callable[["Faults"], None]


class Faults:
    """Causes faults.

    Args:
        cluster: whose hosts fail.
        models: the models that it runs.
        rng: chooses hosts and ranks.
    """

    def __init__(self, cluster: Cluster, models: list[str], rng: random.Random) -> None:
        self._cluster = cluster
        self._models = models
        self._rng = rng

    def kinds(self) -> list[Fault]:
        always: list[Fault] = [
            Faults.kill_rank,
            Faults.suspend_rank_for_short,
            Faults.suspend_rank_for_long,
            Faults.kill_follower,
            Faults.suspend_follower_for_short,
            Faults.suspend_follower_for_long,
            Faults.kill_leader,
            Faults.unload,
        ]
        links: list[Fault] = [Faults.cut_link_for_short, Faults.cut_link_for_long]
        return always + (links if self._cluster.leader.node.can_cut else [])

    def kill_rank(self) -> None:
        with self._some_rank() as rank:
            rank.kill()

    def suspend_rank_for_short(self) -> None:
        self._suspend_rank(SHORT_SECONDS)

    def suspend_rank_for_long(self) -> None:
        self._suspend_rank(LONG_SECONDS)

    def kill_follower(self) -> None:
        follower = self._follower()
        follower.kill()
        time.sleep(self._rng.uniform(0, STREAM_SECONDS))
        follower.start()

    def suspend_follower_for_short(self) -> None:
        self._suspend_follower(SHORT_SECONDS)

    def suspend_follower_for_long(self) -> None:
        self._suspend_follower(LONG_SECONDS)

    def kill_leader(self) -> None:
        self._cluster.leader.kill()
        self._cluster.leader.start()

    def cut_link_for_short(self) -> None:
        self._cut_link(SHORT_SECONDS)

    def cut_link_for_long(self) -> None:
        self._cut_link(LONG_SECONDS)

    def unload(self) -> None:
        self._cluster.leader.ctl("unload", self._rng.choice(self._models))

    def _follower(self) -> Host:
        return self._rng.choice(self._cluster.followers)

    @contextlib.contextmanager
    def _some_rank(self) -> Iterator[psutil.Process]:
        """Choose a rank, if there is any; it may end at any time."""
        ranks = sorted(self._cluster.ranks(), key=lambda rank: rank.pid)
        with contextlib.suppress(psutil.Error, IndexError):
            yield self._rng.choice(ranks)

    def _suspend_rank(self, seconds: float) -> None:
        with self._some_rank() as rank:
            rank.suspend()
            time.sleep(seconds)
            rank.resume()

    def _suspend_follower(self, seconds: float) -> None:
        follower = self._follower()
        follower.signal_daemon(signal.SIGSTOP)
        time.sleep(seconds)
        follower.signal_daemon(signal.SIGCONT)

    def _cut_link(self, seconds: float) -> None:
        node = self._rng.choice(self._cluster.hosts).node
        node.set_link(up=False)
        time.sleep(seconds)
        node.set_link(up=True)
