"""Cuts of the link between two hosts, with the timeouts that users have."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.cluster import Cluster, generating, leases, running_cluster, wait_until
from tests.distributed.models import PIPELINE, Reference, check_references
from tests.distributed.network import has_namespaces

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not has_namespaces(), reason="this user cannot create network namespaces"),
]

SHORT_CUT_SECONDS = 10.0
LONG_CUT_SECONDS = 60.0
STREAM_SECONDS = 30.0
SLACK_SECONDS = 15.0


@pytest.fixture(scope="module")
def cluster(tiny_tokenizer: Path) -> Iterator[Cluster]:
    """Two paired hosts with the default settings."""
    with running_cluster("a", "b", tokenizer=tiny_tokenizer, models=[PIPELINE]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def references(cluster: Cluster) -> list[Reference]:
    """What one host generates; afterwards, both hosts run the model."""
    found = cluster.references(PIPELINE)
    cluster.load(PIPELINE, "pipeline", 2)
    return found


def test_request_survives_a_cut_of_10_seconds(cluster: Cluster, references: list[Reference]) -> None:
    ranks, node = {rank.pid for rank in cluster.ranks()}, cluster.followers[0].node
    with cluster.client as client:
        with generating(client, PIPELINE, tokens=50) as generation:
            node.set_link(up=False)
            time.sleep(SHORT_CUT_SECONDS)
            node.set_link(up=True)
            assert generation.error() is None
        check_references(client, PIPELINE, references)
    assert ranks == {rank.pid for rank in cluster.ranks()}


def test_cut_of_a_minute_ends_the_group_on_both_hosts(cluster: Cluster, references: list[Reference]) -> None:
    follower = cluster.followers[0]
    started = time.monotonic()
    with cluster.client as client:
        with generating(client, PIPELINE) as generation:
            follower.node.set_link(up=False)
            error = generation.error()
            assert time.monotonic() - started < STREAM_SECONDS + SLACK_SECONDS
        assert ("host_lost", True) == (error.code, "stream_timeout_seconds" in error.message), error.message
        # Each host ends its rank by itself.
        wait_until(lambda: not cluster.ranks() and not leases(follower), "a rank or its lease is left", SLACK_SECONDS)
        time.sleep(max(0.0, started + LONG_CUT_SECONDS - time.monotonic()))
        follower.node.set_link(up=True)
        check_references(client, PIPELINE, references)
    cluster.check_nothing_left(PIPELINE)
