"""Groups that cannot start because of one host: the load fails with the reason, and every host has its memory back."""

import pytest

from osaurusd.errors import (
    DiskFull,
    Draining,
    HostUnreachable,
    InsufficientMemory,
    LoadFailed,
    VersionMismatch,
    WorkerCrashed,
)
from osaurusd.wire.residency import EventKind
from tests.osaurusd.groups.network import assert_memory_is_back, cluster


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lend_bytes": 0}, InsufficientMemory, r'host "b": .*lends no memory; set `distributed.lend_bytes`'),
        ({"lend_bytes": 999}, InsufficientMemory, "lends at most 999 B"),
        ({"draining": True}, Draining, 'host "b": the host is draining'),
        ({"fetch_error": DiskFull("no space")}, DiskFull, 'host "b": no space'),
        ({"reachable": False}, HostUnreachable, '"b"'),
    ],
)
async def test_a_host_that_cannot_run_a_rank_fails_the_load_with_its_reason(tmp_path, change, error, message):
    async with cluster(tmp_path) as hosts:
        for name, value in change.items():
            setattr(hosts.followers[0], name, value)
        with pytest.raises(error, match=message):
            await hosts.leader.pool.load(hosts.model)
        await assert_memory_is_back(hosts)


async def test_other_versions_are_refused_with_both_named(tmp_path):
    async with cluster(tmp_path) as hosts:
        hosts.followers[0].versions["mlx"] = "9"
        with pytest.raises(VersionMismatch, match="has mlx 9, but the leader has 2"):
            await hosts.leader.pool.load(hosts.model)
        assert hosts.followers[0].kinds == [EventKind.LEASE_REFUSED]


async def test_a_host_that_fails_to_load_its_part_fails_the_load(tmp_path):
    async with cluster(tmp_path, behaviors=("fail_load",)) as hosts:
        with pytest.raises(LoadFailed, match='host "b": the model cannot be loaded: the weights are missing'):
            await hosts.leader.pool.load(hosts.model)
        await assert_memory_is_back(hosts)


async def test_a_host_that_cannot_join_fails_the_load_with_the_setting(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "cannot_join")) as hosts:
        message = r'host "c": .*not all ranks were connected within `distributed\.start_timeout_seconds`'
        with pytest.raises(WorkerCrashed, match=message):
            await hosts.leader.pool.load(hosts.model)
        await assert_memory_is_back(hosts)
        assert hosts.leader.pool.budget.used_bytes == 0
