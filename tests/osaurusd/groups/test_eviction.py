"""Groups are evicted like other models, and every host gets its memory back."""

import asyncio

from osaurusd.wire.residency import EventKind
from tests.osaurusd.groups.network import BUDGET_BYTES, assert_memory_is_back, cluster, model_record
from tests.osaurusd.pool.helpers import has_exited, lease_and_generate, running_request, until


def large_model(tmp_path):
    """A model that runs in one process and leaves no room for another one."""
    folder = tmp_path / "large" / "echo"
    folder.mkdir(parents=True)
    return model_record("large", folder, weights_bytes=BUDGET_BYTES * 9 // 10)


async def test_idle_group_is_evicted_for_another_model_and_every_host_gets_its_memory_back(tmp_path):
    async with cluster(tmp_path, behaviors=("echo", "echo")) as hosts:
        pool = hosts.leader.pool
        await lease_and_generate(pool, hosts.model, "a")
        pids = [hosts.leader.worker.pid, *(follower.pid for follower in hosts.followers)]

        assert await lease_and_generate(pool, large_model(tmp_path), "b c") == "b c "

        assert all(has_exited(pid) for pid in pids)
        assert [worker.key for worker in pool.snapshot()] == ["large"]
        assert all(follower.pool.budget.used_bytes == 0 for follower in hosts.followers)
        unloaded = [event for event in hosts.leader.events.history() if event.kind is EventKind.UNLOADED]
        assert [(event.model, event.cause) for event in unloaded] == [("m", "memory")]
        assert all(follower.kinds[-1] == EventKind.LEASE_ENDED for follower in hosts.followers)
        assert EventKind.RANK_LOST not in hosts.leader.kinds

        await pool.unload("large")
        assert await lease_and_generate(pool, hosts.model, "d") == "d "


async def test_busy_group_is_evicted_only_after_its_request(tmp_path):
    async with cluster(tmp_path) as hosts:
        pool = hosts.leader.pool
        async with running_request(pool, hosts.model) as stalled:
            loading = asyncio.create_task(pool.load(large_model(tmp_path)))
            history = hosts.leader.events.history
            await until(lambda: ("large", EventKind.QUEUED) in [(event.model, event.kind) for event in history()])
            assert not stalled.done()
            assert pool.snapshot()[0].in_memory
        await loading
        assert [worker.key for worker in pool.snapshot()] == ["large"]
        await assert_memory_is_back(hosts)
