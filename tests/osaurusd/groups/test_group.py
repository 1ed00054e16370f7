"""Groups of fake workers on hosts in one process: start, requests, every way to lose a rank, and the end."""

import asyncio
import json
import os
import signal

import psutil
import pytest

from osaurusd.errors import (
    HostLost,
    HostUnreachable,
    ModelUnloaded,
    WorkerCrashed,
)
from osaurusd.wire.residency import EventKind
from tests.osaurusd.groups.network import (
    BUDGET_BYTES,
    LEASE_BYTES,
    LENT_BYTES,
    RANK_BYTES,
    assert_memory_is_back,
    cluster,
)
from tests.osaurusd.pool.helpers import has_exited, lease_and_generate, running_request, until


def plans(follower):
    path = follower.folder / "plans"
    return path.read_text().split() if path.exists() else []


def states(hosts):
    """The states of the ranks; empty before the load begins."""
    return [rank.state for worker in hosts.leader.pool.snapshot() for rank in worker.ranks]


async def pass_time(hosts, condition, step=2.0):
    """Advance the clock until a condition is met; return how much."""
    before = hosts.clock.now
    async with asyncio.timeout(30):
        while not condition():
            hosts.clock.advance(step)
            await asyncio.sleep(0.01)
    return hosts.clock.now - before


# Start and requests


async def test_requests_are_served_and_each_plan_reaches_every_rank_in_order(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "echo")) as hosts:
        assert await lease_and_generate(hosts.leader.pool, hosts.model, "a b c") == "a b c "
        expected = [str(number) for number in range(1, 5)]
        for follower in hosts.followers:
            await until(lambda follower=follower: plans(follower) == expected)


async def test_ranks_get_the_addresses_of_all_and_a_secret_of_their_epoch(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "echo")) as hosts:
        secrets = set()
        for _ in range(2):
            await hosts.leader.pool.load(hosts.model)
            (first, *others) = [
                json.loads((folder / "connect.json").read_text())
                for folder in (hosts.model.path, *(follower.folder for follower in hosts.followers))
            ]
            assert others == [first, first]
            assert first["addresses"] == ["127.0.0.1:5000", "127.0.0.2:5001", "127.0.0.2:5002"]
            assert len(first["secret"]) == 64
            secrets.add(first["secret"])
            await hosts.leader.pool.unload("m")
        assert len(secrets) == 2


async def test_ranks_get_half_of_the_memory_that_they_do_not_need_if_rank_0_has_more(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        request = json.loads((hosts.followers[0].folder / "load.json").read_text())
        assert request["memory_limit_bytes"] == LEASE_BYTES
        assert request["dequantize"] == "always"
        assert request["rank"] == {"rank": 1, "size": 2, "split": "tensor", "address": "127.0.0.2"}
        assert hosts.followers[0].pool.budget.used_bytes == LEASE_BYTES
        assert hosts.leader.worker.ranks[1].needs_bytes == LEASE_BYTES


async def test_plan_of_the_load_replaces_the_estimate_that_preceded_it(tmp_path):
    async with cluster(tmp_path) as hosts:
        hosts.leader.estimates[hosts.model.repo] = BUDGET_BYTES * 2
        planned = hosts.leader.plan_load

        async def plan_load(request, key):
            hosts.leader.estimates.clear()
            return await planned(request, key)

        hosts.leader.plan_load = plan_load
        await hosts.leader.pool.load(hosts.model)
        assert hosts.leader.worker.needs_bytes == hosts.leader.pool.needs_bytes(hosts.model) == RANK_BYTES


async def test_only_files_of_the_ranks_own_layers_are_needed_for_a_pipeline(tmp_path):
    async with cluster(tmp_path) as hosts:
        requested = []

        async def ensure(manifest, host, only, report):
            requested.append(only)
            return hosts.followers[0].folder

        hosts.followers[0].ensure = ensure
        hosts.leader.distribute(hosts.model, "pipeline", [range(3, 8), range(3)])
        await hosts.leader.pool.load(hosts.model)
        request = json.loads((hosts.followers[0].folder / "load.json").read_text())
        assert requested == [range(3)]
        assert request["rank"]["layers"] == [5, 3]


async def test_other_models_run_in_one_process_without_any_connection(tmp_path):
    async with cluster(tmp_path) as hosts:
        hosts.leader.placements.clear()
        hosts.leader.plan_load = None  # ordinary loads need no plan
        assert await lease_and_generate(hosts.leader.pool, hosts.model, "a") == "a "
        assert hosts.followers[0].links == []
        assert hosts.leader.worker.ranks == ()


async def test_ranks_are_shown_on_the_leader_and_leases_on_the_followers(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "echo")) as hosts:
        await lease_and_generate(hosts.leader.pool, hosts.model, "a b")
        await until(lambda: [rank.plan for rank in hosts.leader.worker.ranks] == [3, 3, 3])
        own, first, second = hosts.leader.worker.ranks
        assert (own.host, first.host, second.host) == (None, "b", "c")
        assert [rank.state for rank in (own, first, second)] == ["ready"] * 3
        assert first.behind == 0
        assert first.sent_bytes > 0
        (lease,) = hosts.followers[1].service.workers()
        assert (lease.model, lease.state, lease.needs_bytes) == ("m", "ready", LEASE_BYTES)
        assert (lease.lease.owner, lease.lease.rank, lease.lease.size) == ("a", 2, 3)
        assert EventKind.RANK_STARTED in hosts.leader.kinds
        assert hosts.followers[0].kinds == [EventKind.LEASE_GRANTED, EventKind.RANK_STARTED]


# The end


async def test_unloading_returns_once_all_ranks_have_exited(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "hang_on_stop"), stop_grace=0.2) as hosts:
        await hosts.leader.pool.load(hosts.model)
        pids = [hosts.leader.worker.pid, *(follower.pid for follower in hosts.followers)]
        unloading = asyncio.create_task(hosts.leader.pool.unload("m"))
        await pass_time(hosts, unloading.done, 0.1)
        await unloading
        assert all(has_exited(pid) for pid in pids)
        assert all(follower.pool.budget.used_bytes == 0 for follower in hosts.followers)
        assert EventKind.RANK_LOST not in hosts.leader.kinds + hosts.followers[0].kinds
        assert hosts.followers[0].kinds[-1] == EventKind.LEASE_ENDED


async def test_unloading_during_the_start_ends_all_ranks(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "never_ready")) as hosts:
        loading = asyncio.create_task(hosts.leader.pool.load(hosts.model))
        await until(lambda: all(follower.service.workers() for follower in hosts.followers))
        await hosts.leader.pool.unload("m", force=True)
        with pytest.raises(ModelUnloaded):
            await loading
        await assert_memory_is_back(hosts)


async def test_closing_a_follower_ends_the_group_with_the_reason(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        async with running_request(hosts.leader.pool, hosts.model) as stalled:
            await hosts.followers[0].service.close()
            with pytest.raises(HostLost, match='host "b" failed: the daemon of the host is shutting down'):
                await stalled
        hosts.followers[0].reachable = False
        with pytest.raises(HostUnreachable):
            await hosts.leader.pool.load(hosts.model)


async def test_a_draining_host_keeps_its_ranks(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        hosts.followers[0].draining = True
        assert await lease_and_generate(hosts.leader.pool, hosts.model, "a") == "a "


async def test_a_rank_that_is_never_ready_ends_the_start_at_its_limit(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "never_ready"), stop_grace=0.2) as hosts:
        loading = asyncio.create_task(hosts.leader.pool.load(hosts.model))
        await until(lambda: states(hosts) == ["starting", "waiting", "starting"])
        assert await pass_time(hosts, loading.done) >= 120
        with pytest.raises(HostLost, match=r'not ready within 120 s .*: rank 2 on host "c" \(starting\)'):
            await loading
        await assert_memory_is_back(hosts)


# Lost ranks


async def lose_in_request(hosts, lose):
    """Lose a rank while a request runs; return the request's error."""
    await hosts.leader.pool.load(hosts.model)
    async with running_request(hosts.leader.pool, hosts.model) as stalled:
        lose()
        await asyncio.wait({stalled}, timeout=30)
        return stalled.exception()


async def test_a_killed_rank_fails_requests_with_the_host_and_the_next_request_is_served(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "echo")) as hosts:
        error = await lose_in_request(hosts, lambda: os.kill(hosts.followers[1].pid, signal.SIGKILL))
        assert isinstance(error, HostLost)
        assert error.message.startswith('rank 2 on host "c" failed: the model\'s worker exited (SIGKILL)')
        await assert_memory_is_back(hosts)
        assert hosts.leader.kinds.count(EventKind.RANK_LOST) == 1
        assert EventKind.RANK_LOST in hosts.followers[1].kinds
        assert await lease_and_generate(hosts.leader.pool, hosts.model, "a") == "a "


async def test_a_killed_rank_0_ends_the_others(tmp_path):
    async with cluster(tmp_path) as hosts:
        error = await lose_in_request(hosts, lambda: os.kill(hosts.leader.worker.pid, signal.SIGKILL))
        assert isinstance(error, WorkerCrashed)
        await assert_memory_is_back(hosts)


async def test_the_rank_that_failed_first_is_named_although_another_one_reports_its_loss_earlier(tmp_path):
    async with cluster(tmp_path, behaviors=("peer_lost", "crash_on_plan")) as hosts:
        await hosts.leader.pool.load(hosts.model)
        with pytest.raises(HostLost, match=r'rank 2 on host "c" failed: (?s:.*)the GPU caught fire'):
            await lease_and_generate(hosts.leader.pool, hosts.model, "stall")
        await assert_memory_is_back(hosts)


async def test_a_loss_that_no_rank_explains_is_reported_after_a_while(tmp_path):
    async with cluster(tmp_path, behaviors=("peer_lost",)) as hosts:
        await hosts.leader.pool.load(hosts.model)
        requesting = asyncio.create_task(lease_and_generate(hosts.leader.pool, hosts.model, "stall"))
        await until(lambda: EventKind.RANK_LOST in hosts.leader.kinds)
        hosts.clock.advance(2)
        with pytest.raises(HostLost, match="connection to a peer was lost"):
            await requesting


async def test_a_rank_without_progress_ends_the_group(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "stuck"), stop_grace=0.2) as hosts:
        await hosts.leader.pool.load(hosts.model)
        await lease_and_generate(hosts.leader.pool, hosts.model, "a b")
        await until(lambda: [rank.behind for rank in hosts.leader.worker.ranks] == [0, 0, 3])
        async with running_request(hosts.leader.pool, hosts.model) as stalled:
            await until(lambda: hosts.leader.worker.ranks[1].behind == 0)
            assert await pass_time(hosts, lambda: EventKind.RANK_LOST in hosts.leader.kinds) >= 60
            await asyncio.wait({stalled}, timeout=30)
        assert 'rank 2 on host "c" made no progress for 60 s' in stalled.exception().message


async def test_a_suspended_rank_is_named(tmp_path):
    async with cluster(tmp_path, behaviors=("stuck", "stuck"), stop_grace=0.2) as hosts:
        await hosts.leader.pool.load(hosts.model)
        await lease_and_generate(hosts.leader.pool, hosts.model, "a")
        os.kill(hosts.followers[1].pid, signal.SIGSTOP)
        async with running_request(hosts.leader.pool, hosts.model) as stalled:
            await pass_time(hosts, lambda: EventKind.RANK_LOST in hosts.leader.kinds)
            await asyncio.wait({stalled}, timeout=30)
        assert 'rank 2 on host "c"' in stalled.exception().message
        assert "its process is suspended" in stalled.exception().message
        await assert_memory_is_back(hosts)


async def test_next_load_waits_until_the_memory_of_lost_ranks_is_back(tmp_path):
    async with cluster(tmp_path, behaviors=("hang_on_stop", "echo"), stop_grace=0.2) as hosts:
        await lose_in_request(hosts, lambda: os.kill(hosts.followers[1].pid, signal.SIGKILL))
        loading = asyncio.create_task(hosts.leader.pool.load(hosts.model))
        assert hosts.followers[0].pool.lendable_bytes(LENT_BYTES) == LENT_BYTES - LEASE_BYTES
        planned = []

        async def plan_load(request, key):
            planned.append(hosts.followers[0].pool.lendable_bytes(LENT_BYTES))
            return hosts.leader.placements[key]

        hosts.leader.plan_load = plan_load
        await pass_time(hosts, lambda: planned, 0.1)
        assert planned == [LENT_BYTES]
        await loading


async def test_a_suspended_rank_0_is_named_and_killed(tmp_path):
    async with cluster(tmp_path, behaviors=("stuck",), stop_grace=0.2) as hosts:
        await hosts.leader.pool.load(hosts.model)
        await lease_and_generate(hosts.leader.pool, hosts.model, "a")
        async with running_request(hosts.leader.pool, hosts.model) as stalled:
            pid = hosts.leader.worker.pid
            os.kill(pid, signal.SIGSTOP)
            # Less than the time after which the worker's own watchdog would kill it.
            await pass_time(hosts, lambda: not hosts.leader.pool.snapshot()[0].in_memory, 0.2)
            await asyncio.wait({stalled}, timeout=30)
        assert "rank 0 on this host made no progress for 60 s" in stalled.exception().message
        assert "its process is suspended" in stalled.exception().message
        assert has_exited(pid)
        await assert_memory_is_back(hosts)


# Lost connections


async def test_a_cut_of_10_seconds_is_survived(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        (link,) = hosts.followers[0].links
        link.is_cut = True
        for _ in range(10):
            hosts.clock.advance(1)
            await asyncio.sleep(0.01)
        link.heal()
        assert await lease_and_generate(hosts.leader.pool, hosts.model, "a") == "a "
        await until(lambda: plans(hosts.followers[0]))


async def test_a_cut_of_60_seconds_ends_both_sides_within_the_timeout(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        pid, (link,) = hosts.followers[0].pid, hosts.followers[0].links
        async with running_request(hosts.leader.pool, hosts.model) as stalled:
            link.is_cut = True
            for _ in range(32):
                hosts.clock.advance(1)
                await asyncio.sleep(0.01)
            with pytest.raises(HostLost, match=r'"b" was lost: nothing arrived for 30 s'):
                await stalled
            await until(lambda: has_exited(pid))
            await assert_memory_is_back(hosts)
        assert await lease_and_generate(hosts.leader.pool, hosts.model, "a") == "a "


async def test_a_leader_that_dies_leaves_no_rank_behind(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        pid = hosts.followers[0].pid
        hosts.followers[0].links[0].reset()
        await until(lambda: has_exited(pid))
        await assert_memory_is_back(hosts)


async def test_a_new_epoch_ends_the_rank_of_the_old_one_first(tmp_path):
    async with cluster(tmp_path) as hosts:
        await hosts.leader.pool.load(hosts.model)
        follower = hosts.followers[0]
        follower.lend_bytes = RANK_BYTES  # not enough for two
        old = follower.pid
        follower.links[0].is_cut = True
        os.kill(hosts.leader.worker.pid, signal.SIGKILL)
        await until(lambda: not hosts.leader.worker.in_memory)
        await hosts.leader.pool.load(hosts.model)
        assert has_exited(old)
        assert psutil.pid_exists(follower.pid)
        assert follower.pool.budget.used_bytes == RANK_BYTES
        follower.links[0].reset()
