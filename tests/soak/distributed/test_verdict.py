"""The verdict of a soak of several hosts."""

from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from tests.distributed.cluster import Cluster, wait_until
from tests.soak.distributed import run
from tests.soak.distributed.run import (
    GROWTH_BYTES,
    Evidence,
    FaultTime,
    Measurement,
    Outcome,
    Soak,
    find_problems,
)

CORRECT = Outcome("correct", 0, 1)
FAULT = FaultTime("kill_rank", 10, 11, 20)


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome("wrong", 12, 13, "other tokens"), "wrong: other tokens"),
        (Outcome("hang", 12, 252), "hang: "),
        (Outcome("host_lost", 2, 9, "gone"), "without a fault: host_lost: gone"),
        (Outcome("host_lost", 21, 22, "gone"), "without a fault: host_lost: gone"),
        (Outcome("host_lost", 9, 12, "gone"), None),
        (Outcome("host_lost", 15, 16, "gone"), None),
    ],
)
def test_only_errors_during_a_fault_are_excused(outcome: Outcome, problem: str | None) -> None:
    evidence = Evidence(seed=1, outcomes=[CORRECT, outcome], faults=[FAULT])
    assert ([problem] if problem else []) == find_problems(evidence)


def test_checks_that_fail_are_problems_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the leak of a daemon that a fault has restarted."""
    host = SimpleNamespace(name="b", pid=1)
    used = {1: 100, 2: 200}
    monkeypatch.setattr(run, "measure", lambda host: Measurement(host.pid, used[host.pid], Counter()))

    def check_nothing_left(_model: str) -> None:
        raise AssertionError("workers are left")

    hosts = SimpleNamespace(hosts=[host], unload=lambda _model: None, check_nothing_left=check_nothing_left)
    soak = Soak(cast("Cluster", hosts), seed=1)
    soak._measure_restarted()
    host.pid = 2
    soak._measure_restarted()
    used[2] += GROWTH_BYTES + 1
    monkeypatch.setattr(run, "wait_until", partial(wait_until, timeout=0.0))
    soak._check_nothing_left()

    assert soak.evidence.problems == ["after unloading: workers are left", "after the run: b leaks"]
    assert soak.evidence.memory == {"b": (200, 200 + GROWTH_BYTES + 1)}


@pytest.mark.long
def test_soak_without_a_correct_response_fails() -> None:
    assert ["no request succeeded"] == find_problems(Evidence(seed=1))
