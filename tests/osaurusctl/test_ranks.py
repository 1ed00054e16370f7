"""What the commands show of models that run on several hosts, and of memory that this host lends."""

import json

import pytest

from osaurusctl.doctor import hosts
from osaurusd.wire.groups import LeaseInfo, RankInfo
from osaurusd.wire.residency import Event, EventKind
from tests.osaurusctl.fake_daemon import worker

GB = 10**9


def rank(number, host, **fields):
    return RankInfo(rank=number, host=host, **{"state": "ready", "needs_bytes": 2 * GB, "memory_bytes": GB, **fields})


@pytest.fixture
def group(daemon):
    """A model on this host and on `b`."""
    second = rank(1, "b", plan=4, behind=1, round_trip_seconds=0.0014)
    daemon.workers = [worker("llama", ranks=[rank(0, None, plan=5), second])]
    return daemon


@pytest.fixture
def lease(daemon):
    """A rank for host `a`."""
    lease = LeaseInfo(owner="a", rank=1, size=2, split="tensor")
    daemon.workers = [worker("llama", lease=lease)]
    return daemon


def test_ps_shows_the_ranks_of_a_model(group, invoke):
    assert invoke("ps").stdout.splitlines()[2:] == [
        "",
        "MODEL  RANK  HOST       STATE  MEMORY  RESIDENT  STEP  BEHIND  ROUND TRIP",
        "llama  0     this host  ready  2.0 GB  1.0 GB    5     0       -",
        "llama  1     b          ready  2.0 GB  1.0 GB    4     1       1.4 ms",
    ]
    (shown,) = json.loads(invoke("ps", "--json").stdout)
    assert [each["host"] for each in shown["ranks"]] == [None, "b"]


def test_ps_shows_which_host_a_lease_is_for(lease, invoke):
    assert invoke("ps").stdout.splitlines()[-2:] == [
        "lent to other hosts:",
        "llama (rank 1 of 2, tensor): 2.0 GB for host a",
    ]
    (shown,) = json.loads(invoke("ps", "--json").stdout)
    assert shown["lease"] == {"owner": "a", "rank": 1, "size": 2, "split": "tensor"}


def test_ps_shows_no_second_table_for_models_in_one_process(daemon, invoke):
    daemon.workers = [worker("llama")]
    assert len(invoke("ps").stdout.splitlines()) == 2


def test_status_shows_the_hosts_of_a_model(group, invoke):
    assert "loaded     llama (ready, 2.0 GB, with b)" in invoke("status").stdout


def test_status_shows_lent_memory_apart_from_models(lease, invoke):
    lines = [" ".join(line.split()) for line in invoke("status").stdout.splitlines()]
    assert "loaded none" in lines
    assert "lent llama (rank 1 of 2, tensor): 2.0 GB for host a" in lines


def test_events_name_the_host_and_the_rank(daemon, invoke):
    daemon.events = [Event(kind=EventKind.RANK_LOST, time=0.0, model="llama", host="b", rank=1, reason="it exited")]
    assert "rank_lost" in invoke("events").stdout
    assert "llama (host b, rank 1): it exited" in invoke("events").stdout


@pytest.mark.parametrize(
    ("seconds", "verdict", "detail"),
    [
        (0.0014, "ok", "llama runs here and on b (1.4 ms)"),
        (0.2, "warning", "llama: slow connection to b (200.0 ms)"),
        (None, "ok", "llama runs here and on b"),
    ],
)
def test_doctor_checks_the_connections_of_loaded_models(daemon, seconds, verdict, detail):
    daemon.workers = [worker("llama", ranks=[rank(0, None), rank(1, "b", round_trip_seconds=seconds)])]
    (check,) = hosts.check_ranks(Context(daemon.workers))
    assert (check.verdict, check.detail) == (verdict, detail)


def test_doctor_says_nothing_about_models_in_one_process(daemon):
    assert list(hosts.check_ranks(Context([worker("llama")]))) == []


class Context:
    """The part of the context that the check reads."""

    def __init__(self, workers):
        self.status = self
        self.workers = workers
