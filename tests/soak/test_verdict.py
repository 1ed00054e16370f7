"""Each check of the soak detects the problem that it looks for."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from tests.soak import report, verdict
from tests.soak.evidence import (
    CORRECT,
    DISCONNECTED,
    WRONG,
    Evidence,
    Fault,
    FaultKind,
    Inventory,
    Outcome,
    Sample,
    WorkerLoad,
)

SURVIVOR_PID = 42
KILLED = {"event": "worker lost", "level": "error", "model": "one", "reason": "the model's worker ended (SIGKILL)"}


@pytest.fixture
def evidence():
    """Evidence of a soak without problems. One request failed because its worker was killed."""
    inventory = Inventory(Counter({"tcp listen": 2, "pipe": 4}), Counter({"_serve": 1}), [])
    return Evidence(
        seed=1,
        outcomes=[
            Outcome("greedy", "one", 1, 2, CORRECT),
            Outcome("greedy", "one", 9, 11, "worker_crashed"),
            Outcome("disconnect_in_stream", "two", 9, 11, DISCONNECTED),
            Outcome("send_garbage", "two", 9, 11, CORRECT),
        ],
        faults=[Fault(FaultKind.KILL, "one", 10, 10)],
        samples=[Sample(time, 50_000_000 + 10_000 * time, {SURVIVOR_PID: 200_000_000}) for time in range(40)],
        latencies=[0.001] * 99 + [0.2],
        before=inventory,
        after=inventory,
        idle_loads=[WorkerLoad("one", 0, 0, 1000), WorkerLoad("two", 0, 0, 2000)],
        final_loads=[WorkerLoad("one", 0, 0, 1000)],
        survivor_pid=SURVIVOR_PID,
        instances={"a"},
        log=[{"event": "loaded", "level": "info"}, KILLED],
    )


def test_a_soak_without_problems_passes(evidence):
    assert [] == verdict.find_problems(evidence)


def set_after(**changes):
    return lambda evidence: setattr(evidence, "after", replace(evidence.after, **changes))


def set_final_loads(*loads):
    return lambda evidence: setattr(evidence, "final_loads", list(loads))


def set_samples(change):
    return lambda evidence: setattr(
        evidence, "samples", [replace(sample, **change(sample)) for sample in evidence.samples]
    )


PROBLEMS = {
    "wrong response": (
        lambda evidence: evidence.outcomes.append(Outcome("greedy", "one", 1, 2, WRONG, "expected 'a', got 'b'")),
        "greedy for one: expected 'a', got 'b'",
    ),
    "kind that never succeeded": (
        lambda evidence: evidence.outcomes.append(Outcome("logprobs", "one", 9, 11, "worker_crashed")),
        "no request of the kind logprobs succeeded",
    ),
    "no requests": (lambda evidence: evidence.outcomes.clear(), "no request was sent"),
    "leaked descriptor": (
        set_after(descriptors=Counter({"tcp listen": 2, "pipe": 5})),
        "descriptors leaked: 1 of pipe",
    ),
    "leaked task": (set_after(tasks=Counter({"_serve": 1, "_live": 2})), "tasks leaked: 2 of _live"),
    "leftover process": (
        set_after(processes=["python -m osaurusd.worker"]),
        "processes left over: python -m osaurusd.worker",
    ),
    "no inventory": (
        lambda evidence: setattr(evidence, "after", None),
        "there is no inventory of the daemon",
    ),
    "leftover request": (
        set_final_loads(WorkerLoad("one", 1, 0, 1000)),
        "one has 1 requests in flight and 0 waiting",
    ),
    "leftover reservation": (
        set_final_loads(WorkerLoad("one", 0, 0, 1_000_000)),
        "one has 999000 bytes reserved without a request",
    ),
    "no worker loads": (set_final_loads(), "the loads of the workers are unknown"),
    "growing daemon": (
        set_samples(lambda sample: {"daemon_bytes": 10**6 * sample.time}),
        "the daemon grows: 24.5 MB in the third quarter, 34.5 MB in the fourth",
    ),
    "growing worker": (
        set_samples(lambda sample: {"worker_bytes": {SURVIVOR_PID: 10**7 * sample.time}}),
        "a worker grows: 245.0 MB in the third quarter, 345.0 MB in the fourth",
    ),
    "no samples": (lambda evidence: evidence.samples.clear(), "the memory of the daemon is unknown"),
    "error in the log": (
        lambda evidence: evidence.log.append({"event": "unexpected error", "level": "error"}),
        "the daemon logged {'event': 'unexpected error', 'level': 'error'}",
    ),
    "plain text in the log": (
        lambda evidence: evidence.log.append({"event": "plain text", "text": "Traceback"}),
        "the daemon logged {'event': 'plain text', 'text': 'Traceback'}",
    ),
    "more crashes than kills": (lambda evidence: evidence.log.append(KILLED), f"the daemon logged {KILLED}"),
    "restarted daemon": (lambda evidence: evidence.instances.add("b"), "the daemon restarted: 2 instances"),
}


@pytest.mark.parametrize(("add_problem", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_problem_is_reported(evidence, add_problem, message):
    add_problem(evidence)

    assert message in verdict.find_problems(evidence)


REPEATEDLY = "the worker crashed repeatedly"
KILL = Fault(FaultKind.KILL, "one", 20, 20)
UNLOAD = Fault(FaultKind.UNLOAD, "one", 20, 22)
PIN = Fault(FaultKind.PIN, "one", 20, 22)
SHORT_QUEUE = Fault(FaultKind.SHORT_QUEUE, None, 20, 22)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (UNLOAD, Outcome("greedy", "one", 10, 20.5, "model_unloaded")),
        (UNLOAD, Outcome("greedy", "one", 21, 30, "model_unloaded")),
        (PIN, Outcome("greedy", "two", 19, 21, "insufficient_memory")),
        (SHORT_QUEUE, Outcome("greedy", "two", 50, 51, "queue_full")),
        (KILL, Outcome("greedy", "one", 60, 61, "worker_crashed", REPEATEDLY)),
        (UNLOAD, Outcome("read_slowly", "one", 60, 61, "slow_client")),
    ],
)
def test_an_error_with_a_cause_is_accepted(evidence, fault, outcome):
    evidence.faults.append(fault)
    evidence.outcomes += [outcome, replace(outcome, result=CORRECT)]

    assert [] == verdict.find_problems(evidence)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (UNLOAD, Outcome("greedy", "two", 10, 20.5, "model_unloaded")),
        (UNLOAD, Outcome("greedy", "one", 10, 11, "model_unloaded")),
        (UNLOAD, Outcome("greedy", "one", 30, 31, "model_unloaded")),
        (UNLOAD, Outcome("greedy", "one", 20, 21, "worker_crashed")),
        (PIN, Outcome("greedy", "two", 30, 31, "insufficient_memory")),
        (SHORT_QUEUE, Outcome("greedy", "one", 10, 11, "queue_full")),
        (KILL, Outcome("greedy", "one", 60, 61, "worker_crashed")),
        (KILL, Outcome("greedy", "one", 100, 101, "worker_crashed", REPEATEDLY)),
        (KILL, Outcome("greedy", "one", 19, 21, "internal_error")),
        (UNLOAD, Outcome("greedy", "one", 60, 61, "slow_client")),
    ],
)
def test_an_error_without_a_cause_is_reported(evidence, fault, outcome):
    evidence.faults.append(fault)
    evidence.outcomes.append(outcome)

    (problem,) = verdict.find_problems(evidence)
    assert f"failed with {outcome.result} without a cause" in problem


def test_many_problems_of_one_kind_are_abbreviated(evidence):
    evidence.outcomes += [Outcome("greedy", "one", 1, 2, WRONG)] * 100

    assert "... and 95 more" == verdict.find_problems(evidence)[-1]


def test_latency_is_summarized_as_maximum_and_99th_percentile(evidence):
    assert (0.2, 0.2) == verdict.summarize_latency(evidence.latencies)
    assert (0.2, 0.001) == verdict.summarize_latency([0.001] * 199 + [0.2])
    assert all(map(math.isnan, verdict.summarize_latency([])))


def test_the_report_counts_results_errors_and_faults(evidence):
    document = report.build(evidence, 60)

    assert (4, 2, 1, 0) == tuple(document[key] for key in ("requests", "correct", "disconnected", "wrong"))
    assert ({"worker_crashed": 1}, {"kill": 1}, 1) == (document["errors"], document["faults"], document["loads"])
    assert "OK" in report.render(document)
    assert "PROBLEMS" in report.render({**document, "problems": ["something"]})
