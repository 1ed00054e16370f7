"""The verdict of a soak of several hosts."""

import pytest

from tests.soak.distributed.run import Evidence, FaultTime, Outcome, find_problems

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


def test_soak_without_a_correct_response_fails() -> None:
    assert ["no request succeeded"] == find_problems(Evidence(seed=1))
