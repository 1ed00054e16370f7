"""Starts of a distributed model that cannot succeed: each is refused or ends in time, and the next one succeeds."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.cluster import Cluster, leases, running_cluster, wait_until
from tests.distributed.hosts import CommandFailed, Host
from tests.distributed.models import TENSOR
from tests.distributed.network import needs_namespaces

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

START_SECONDS = 15.0
SLACK_SECONDS = 20.0
FAKE_VERSION = "0.1.2"
SMALL_DISK_BYTES = 1 << 20


@pytest.fixture(scope="module")
def cluster(tiny_tokenizer: Path) -> Iterator[Cluster]:
    """Two paired hosts, which give up soon."""
    with running_cluster(
        "a", "b", tokenizer=tiny_tokenizer, models=[TENSOR], start_timeout_seconds=START_SECONDS
    ) as cluster:
        yield cluster


def refused(cluster: Cluster) -> str:
    """Load the model, which fails and leaves nothing; return the error."""
    started = time.monotonic()
    with pytest.raises(CommandFailed) as failure:
        cluster.load(TENSOR, "tensor", 2)
    assert time.monotonic() - started < START_SECONDS + SLACK_SECONDS
    wait_until(lambda: not cluster.ranks(), "workers are left")
    return failure.value.output


def check_loads(cluster: Cluster) -> None:
    """The follower has no lease of the start that failed, and the next one succeeds."""
    wait_until(lambda: not leases(cluster.followers[0]), "a lease is left")
    cluster.load(TENSOR, "tensor", 2)
    cluster.check_nothing_left(TENSOR)


def suspend_new_rank(host: Host, suspended: list[psutil.Process]) -> None:
    """Suspend the next worker of a host as soon as it exists."""
    deadline = time.monotonic() + 60
    while not suspended and time.monotonic() < deadline:
        for rank in host.ranks():
            rank.suspend()
            suspended.append(rank)
        time.sleep(0.005)


@pytest.mark.parametrize("number", [0, 1])
def test_rank_that_never_starts_ends_the_start_in_time(cluster: Cluster, number: int) -> None:
    suspended: list[psutil.Process] = []
    thread = threading.Thread(target=suspend_new_rank, args=(cluster.hosts[number], suspended))
    thread.start()
    error = refused(cluster)
    thread.join()
    assert suspended
    assert "start_timeout_seconds" in error
    check_loads(cluster)


@needs_namespaces
def test_full_disk_of_a_follower_is_one_clear_error(cluster: Cluster) -> None:
    follower = cluster.followers[0]
    follower.node.mount(follower.home / "models", SMALL_DISK_BYTES)
    try:
        error = refused(cluster)
        assert "b" in error
        assert "disk" in error
        # Nothing fills the disk after the failure.
        assert [] == list(follower.node.path(follower.home / "models").rglob("*.safetensors*"))
    finally:
        follower.node.unmount(follower.home / "models")
    check_loads(cluster)


def test_different_version_on_a_follower_is_refused_before_anything_starts(cluster: Cluster, tmp_path: Path) -> None:
    follower = cluster.followers[0]
    fake = tmp_path / f"mlx-{FAKE_VERSION}.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mlx\nVersion: {FAKE_VERSION}\n")
    follower.stop()
    follower.start(PYTHONPATH=str(tmp_path))
    error = refused(cluster)
    assert FAKE_VERSION in error
    follower.stop()
    follower.start()
    check_loads(cluster)


def test_unreachable_follower_is_named(cluster: Cluster) -> None:
    follower = cluster.followers[0]
    follower.stop()
    assert "b" in refused(cluster)
    follower.start()
    check_loads(cluster)
