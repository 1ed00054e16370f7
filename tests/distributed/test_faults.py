"""Faults of a model that runs on three hosts: each ends in time, with its reason, and the next request is served."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from openai import APIError

from tests.distributed.cluster import Cluster, generating, leases, running_cluster, wait_until
from tests.distributed.models import TENSOR, Reference, check_references
from tests.distributed.network import needs_namespaces
from tests.osaurusd.pool.helpers import is_dead

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

STREAM_SECONDS = 6.0
HANG_SECONDS = 10.0
START_SECONDS = 40.0
SLACK_SECONDS = 15.0
"""On a busy machine, a timeout is noticed late."""

SHORT_CUT_SECONDS = 2.0


@pytest.fixture(scope="module")
def cluster(tiny_tokenizer: Path) -> Iterator[Cluster]:
    """Three paired hosts, which notice faults soon."""
    timeouts = {
        "stream_timeout_seconds": STREAM_SECONDS,
        "hang_timeout_seconds": HANG_SECONDS,
        "start_timeout_seconds": START_SECONDS,
    }
    with running_cluster("a", "b", "c", tokenizer=tiny_tokenizer, models=[TENSOR], **timeouts) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def references(cluster: Cluster) -> list[Reference]:
    return cluster.references(TENSOR)


@pytest.fixture
def loaded(cluster: Cluster, references: list[Reference]) -> Iterator[Cluster]:
    """The three hosts with the model, which works before and after the test, and of which nothing is left."""
    cluster.load(TENSOR, "tensor", 3)
    with cluster.client as client:
        check_references(client, TENSOR, references[:1])
    yield cluster
    # The leader may have another port.
    with cluster.client as client:
        check_references(client, TENSOR, references[:3])
    cluster.check_nothing_left(TENSOR)


def check_fault(cluster: Cluster, cause: Callable[[], object], within: float, *words: str) -> APIError:
    """Cause a fault while a request runs; the request ends in time with the reason, which contains these words."""
    with cluster.client as client, generating(client, TENSOR) as generation:
        cause()
        started = time.monotonic()
        error = generation.error()
        seconds = time.monotonic() - started
    assert error is not None, "the request has finished in spite of the fault"
    assert seconds < within + SLACK_SECONDS
    assert all(word in error.message for word in words), error.message
    return error


def gone(processes: list[psutil.Process]) -> bool:
    return all(map(is_dead, processes))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_killed_rank_ends_the_request_at_once(loaded: Cluster, number: int) -> None:
    ranks = loaded.ranks()
    error = check_fault(loaded, loaded.hosts[number].rank().kill, within=0)
    assert ("host_lost" if number else "worker_crashed") == error.code
    assert loaded.hosts[number].name in error.message if number else "SIGKILL" in error.message
    wait_until(lambda: gone(ranks), "ranks outlive one that was killed")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_suspended_rank_is_killed_when_it_makes_no_progress(loaded: Cluster, number: int) -> None:
    ranks = loaded.ranks()
    check_fault(loaded, loaded.hosts[number].rank().suspend, HANG_SECONDS, f"rank {number} ", "is suspended")
    wait_until(lambda: gone(ranks), "the suspended rank is left")


def test_short_pause_of_a_rank_is_no_fault(loaded: Cluster) -> None:
    check_pause(loaded, loaded.followers[0].rank().suspend, loaded.followers[0].rank().resume, HANG_SECONDS / 3)


def test_killed_follower_ends_the_request_at_once(loaded: Cluster) -> None:
    follower, ranks = loaded.followers[0], loaded.ranks()
    check_fault(loaded, follower.kill, 0, follower.name)
    wait_until(lambda: gone(ranks), "ranks outlive a daemon that was killed")
    with pytest.raises(APIError, match=follower.name), loaded.client as client:
        client.chat.completions.create(model=TENSOR, messages=[{"role": "user", "content": "amber"}], max_tokens=1)
    follower.start()
    # After two failures, requests wait; this does not.
    loaded.load(TENSOR, "tensor", 3)


def test_suspended_follower_ends_the_request_in_time(loaded: Cluster) -> None:
    follower, ranks = loaded.followers[0], loaded.ranks()
    check_fault(loaded, lambda: follower.signal_daemon(signal.SIGSTOP), STREAM_SECONDS, follower.name)
    follower.signal_daemon(signal.SIGCONT)
    wait_until(lambda: gone(ranks), "ranks outlive their group")


def test_killed_leader_ends_the_ranks_of_its_followers(loaded: Cluster) -> None:
    ranks = loaded.ranks()
    check_fault(loaded, loaded.leader.kill, within=0)
    wait_until(lambda: gone(ranks), "ranks outlive their leader")
    for follower in loaded.followers:
        wait_until(lambda follower=follower: not leases(follower), "the lease outlives the leader")
    loaded.leader.start()


def check_pause(cluster: Cluster, pause: Callable[[], object], resume: Callable[[], object], seconds: float) -> None:
    """Pause something while a request runs: the same ranks go on with the right tokens."""
    ranks = {rank.pid for rank in cluster.ranks()}
    with cluster.client as client, generating(client, TENSOR, tokens=60) as generation:
        pause()
        time.sleep(seconds)
        resume()
        assert generation.error() is None
    assert ranks == {rank.pid for rank in cluster.ranks()}


@needs_namespaces
def test_short_cut_of_a_link_is_no_fault(loaded: Cluster) -> None:
    node = loaded.followers[0].node
    check_pause(loaded, lambda: node.set_link(up=False), lambda: node.set_link(up=True), SHORT_CUT_SECONDS)


@needs_namespaces
def test_long_cut_of_a_link_ends_the_group_on_both_sides(loaded: Cluster) -> None:
    follower, ranks = loaded.followers[0], loaded.ranks()
    check_fault(loaded, lambda: follower.node.set_link(up=False), STREAM_SECONDS, follower.name)
    # Each side ends its ranks by itself.
    seconds = wait_until(lambda: gone(ranks), "ranks are left")
    assert seconds < STREAM_SECONDS + SLACK_SECONDS
    follower.node.set_link(up=True)
