"""Two hosts run a model together: paired, checked and loaded with the CLI, used with OpenAI's client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.cluster import Cluster, generating, leases, running_cluster, wait_until
from tests.distributed.models import PIPELINE, TENSOR, check_references


@pytest.fixture(scope="module")
def cluster(tiny_tokenizer: Path) -> Iterator[Cluster]:
    """Two paired hosts, of which only the leader has models."""
    with running_cluster("a", "b", tokenizer=tiny_tokenizer, models=[TENSOR, PIPELINE]) as cluster:
        yield cluster


def check_split(cluster: Cluster, model: str, split: str) -> None:
    """Load a model on both hosts, of which it uses one rank each; its tokens are those of one host."""
    references = cluster.references(model, count=8)
    with cluster.client as client:
        cluster.load(model, split, 2)
        assert [1, 1] == [len(host.ranks()) for host in cluster.hosts]
        (worker,) = leases(cluster.followers[0])
        assert ("a", 1, 2, split) == tuple(worker["lease"][key] for key in ("owner", "rank", "size", "split"))
        check_references(client, model, references)
        # The second time, prompts are in the prefix cache of each rank.
        check_references(client, model, references[:2])


def test_check_measures_the_link_between_paired_hosts(cluster: Cluster) -> None:
    assert ["b"] == [host["name"] for host in cluster.leader.ctl("host", "ls")]
    report = cluster.leader.ctl("host", "check", "b")
    assert report["ok"], report


def test_model_split_by_tensors_recovers_from_a_killed_rank(cluster: Cluster) -> None:
    check_split(cluster, TENSOR, "tensor")
    rank = cluster.followers[0].rank()
    with cluster.client as client:
        with generating(client, TENSOR) as generation:
            rank.kill()
            error = generation.error()
        assert "host_lost" == error.code
        assert 'rank 1 on host "b"' in error.message
        client.chat.completions.create(model=TENSOR, messages=[{"role": "user", "content": "amber"}], max_tokens=2)
    assert rank.pid != cluster.followers[0].rank().pid
    cluster.check_nothing_left(TENSOR)


def test_pipeline_ends_when_its_leader_dies(cluster: Cluster) -> None:
    check_split(cluster, PIPELINE, "pipeline")
    cluster.leader.kill()
    wait_until(lambda: not cluster.ranks(), "the rank outlives its leader")
    wait_until(lambda: not leases(cluster.followers[0]), "the lease outlives the leader")
