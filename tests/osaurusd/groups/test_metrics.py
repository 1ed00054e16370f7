from prometheus_client import CollectorRegistry

from osaurusd.groups.metrics import RankCollector
from tests.osaurusd.groups.network import LEASE_BYTES, cluster
from tests.osaurusd.pool.helpers import lease_and_generate, until


async def test_ranks_and_leases_have_metrics_on_both_hosts(tmp_path):
    async with cluster(tmp_path) as hosts:
        leader, follower = CollectorRegistry(), CollectorRegistry()
        leader.register(RankCollector(hosts.leader.pool.snapshot, lambda: []))
        follower.register(RankCollector(hosts.followers[0].pool.snapshot, hosts.followers[0].service.workers))
        await lease_and_generate(hosts.leader.pool, hosts.model, "a b")
        await until(lambda: hosts.leader.worker.ranks[1].behind == 0)

        rank = {"model": "m", "rank": "1", "host": "b"}
        assert leader.get_sample_value("osaurus_rank_steps_behind", rank) == 0
        assert leader.get_sample_value("osaurus_rank_round_trip_seconds", rank) == 0
        assert leader.get_sample_value("osaurus_rank_sent_bytes_total", rank) > 0
        assert leader.get_sample_value("osaurus_rank_memory_bytes", rank) > 0
        own = {"model": "m", "rank": "0", "host": "localhost"}
        assert leader.get_sample_value("osaurus_rank_memory_bytes", own) > 0
        assert leader.get_sample_value("osaurus_rank_sent_bytes_total", own) is None
        assert follower.get_sample_value("osaurus_lent_bytes", {"model": "m", "owner": "a"}) == LEASE_BYTES
        await hosts.leader.pool.unload("m")
        assert follower.get_sample_value("osaurus_lent_bytes", {"model": "m", "owner": "a"}) is None
