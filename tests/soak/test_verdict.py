"""Every check of a soak must be able to fail."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from tests.soak import table, verdict
from tests.soak.evidence import LEFT, RIGHT, WRONG, Evidence, Fault, FaultKind, Inventory, Load, Outcome, Sample

SURVIVOR = 42
KILLED = {"event": "worker lost", "level": "error", "model": "one", "reason": "the model's worker ended (SIGKILL)"}


@pytest.fixture
def evidence():
    """Of a soak in which all went well, with a kill that cost somebody an answer."""
    inventory = Inventory(Counter({"tcp listen": 2, "pipe": 4}), Counter({"_serve": 1}), [])
    return Evidence(
        seed=1,
        outcomes=[
            Outcome("plain", "one", 1, 2, RIGHT),
            Outcome("plain", "one", 9, 11, "worker_crashed"),
            Outcome("leaves", "two", 9, 11, LEFT),
            Outcome("talks_garbage", "two", 9, 11, RIGHT),
        ],
        faults=[Fault(FaultKind.KILL, "one", 10, 10)],
        samples=[Sample(at, 50_000_000 + 10_000 * at, {SURVIVOR: 200_000_000}) for at in range(40)],
        lags=[0.001] * 99 + [0.2],
        before=inventory,
        after=inventory,
        resting=[Load("one", 0, 0, 1000), Load("two", 0, 0, 2000)],
        loads=[Load("one", 0, 0, 1000)],
        survivor=SURVIVOR,
        instances={"a"},
        log=[{"event": "loaded", "level": "info"}, KILLED],
    )


def test_nothing_is_wrong_where_nothing_is(evidence):
    assert [] == verdict.reasons(evidence)


SPOILS = {
    "answered otherwise": (
        lambda evidence: evidence.outcomes.append(Outcome("plain", "one", 1, 2, WRONG, "'b' where 'a' belongs")),
        "plain of one: 'b' where 'a' belongs",
    ),
    "a kind that was never answered": (
        lambda evidence: evidence.outcomes.append(Outcome("scored", "one", 9, 11, "worker_crashed")),
        "not one request was answered of the kind scored",
    ),
    "nothing asked": (lambda evidence: evidence.outcomes.clear(), "no request was made"),
    "a descriptor too many": (
        lambda evidence: setattr(
            evidence, "after", replace(evidence.after, descriptors=Counter({"tcp listen": 2, "pipe": 5}))
        ),
        "descriptors leaked: 1 of pipe",
    ),
    "a task too many": (
        lambda evidence: setattr(evidence, "after", replace(evidence.after, tasks=Counter({"_serve": 1, "_live": 2}))),
        "tasks leaked: 2 of _live",
    ),
    "a process left": (
        lambda evidence: setattr(evidence, "after", replace(evidence.after, processes=["python -m osaurusd.worker"])),
        "processes left over: python -m osaurusd.worker",
    ),
    "not looked": (lambda evidence: setattr(evidence, "after", None), "it was not looked at what the daemon has"),
    "a request left": (
        lambda evidence: setattr(evidence, "loads", [Load("one", 1, 0, 1000)]),
        "one has 1 requests in flight and 0 waiting",
    ),
    "a reservation left": (
        lambda evidence: setattr(evidence, "loads", [Load("one", 0, 0, 1_000_000)]),
        "one has 999000 bytes reserved for nobody",
    ),
    "workers not looked at": (
        lambda evidence: evidence.loads.clear(),
        "it was not looked at what workers have under way",
    ),
    "a daemon that grows": (
        lambda evidence: setattr(
            evidence, "samples", [replace(sample, daemon_bytes=10**6 * sample.at) for sample in evidence.samples]
        ),
        "the daemon grows: 24.5 MB in the third quarter, 34.5 MB in the fourth",
    ),
    "a worker that grows": (
        lambda evidence: setattr(
            evidence,
            "samples",
            [replace(sample, worker_bytes={SURVIVOR: 10**7 * sample.at}) for sample in evidence.samples],
        ),
        "a worker grows: 245.0 MB in the third quarter, 345.0 MB in the fourth",
    ),
    "memory not looked at": (lambda evidence: evidence.samples.clear(), "the memory of the daemon was not looked at"),
    "an error line": (
        lambda evidence: evidence.log.append({"event": "unexpected error", "level": "error"}),
        "the daemon logged {'event': 'unexpected error', 'level': 'error'}",
    ),
    "text that is no log": (
        lambda evidence: evidence.log.append({"event": "plain text", "text": "Traceback"}),
        "the daemon logged {'event': 'plain text', 'text': 'Traceback'}",
    ),
    "more deaths than kills": (lambda evidence: evidence.log.append(KILLED), f"the daemon logged {KILLED}"),
    "another daemon": (lambda evidence: evidence.instances.add("b"), "2 daemons answered where there must be one"),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILS.values(), ids=SPOILS)
def test_whatever_is_wrong_is_told(evidence, spoil, reason):
    spoil(evidence)

    assert reason in verdict.reasons(evidence)


AGAIN = "this has happened repeatedly"
UNLOAD = Fault(FaultKind.UNLOAD, "one", 20, 22)
PIN = Fault(FaultKind.PIN, "one", 20, 22)
QUEUE = Fault(FaultKind.SHORT_QUEUE, None, 20, 22)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (UNLOAD, Outcome("plain", "one", 10, 20.5, "model_unloaded")),
        (UNLOAD, Outcome("plain", "one", 21, 30, "model_unloaded")),
        (PIN, Outcome("plain", "two", 19, 21, "insufficient_memory")),
        (QUEUE, Outcome("plain", "two", 50, 51, "queue_full")),
        (Fault(FaultKind.KILL, "one", 20, 20), Outcome("plain", "one", 60, 61, "worker_crashed", AGAIN)),
        (UNLOAD, Outcome("reads_slowly", "one", 60, 61, "slow_client")),
    ],
)
def test_what_was_caused_is_no_fault(evidence, fault, outcome):
    evidence.faults.append(fault)
    evidence.outcomes += [outcome, replace(outcome, result=RIGHT)]

    assert [] == verdict.reasons(evidence)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (UNLOAD, Outcome("plain", "two", 10, 20.5, "model_unloaded")),
        (UNLOAD, Outcome("plain", "one", 10, 11, "model_unloaded")),
        (UNLOAD, Outcome("plain", "one", 30, 31, "model_unloaded")),
        (UNLOAD, Outcome("plain", "one", 20, 21, "worker_crashed")),
        (PIN, Outcome("plain", "two", 30, 31, "insufficient_memory")),
        (QUEUE, Outcome("plain", "one", 10, 11, "queue_full")),
        (Fault(FaultKind.KILL, "one", 20, 20), Outcome("plain", "one", 60, 61, "worker_crashed")),
        (Fault(FaultKind.KILL, "one", 20, 20), Outcome("plain", "one", 100, 101, "worker_crashed", AGAIN)),
        (Fault(FaultKind.KILL, "one", 20, 20), Outcome("plain", "one", 19, 21, "internal_error")),
        (UNLOAD, Outcome("plain", "one", 60, 61, "slow_client")),
    ],
)
def test_what_nobody_caused_is(evidence, fault, outcome):
    evidence.faults.append(fault)
    evidence.outcomes.append(outcome)

    (reason,) = verdict.reasons(evidence)
    assert f"ended with {outcome.result}, and nobody had caused it" in reason


def test_only_some_of_many_reasons_are_told(evidence):
    evidence.outcomes += [Outcome("plain", "one", 1, 2, WRONG)] * 100

    assert "... and 95 more like these" == verdict.reasons(evidence)[-1]


def test_lag_is_the_largest_and_the_99th_percentile(evidence):
    assert (0.2, 0.2) == verdict.lag(evidence.lags)
    assert (0.2, 0.001) == verdict.lag([0.001] * 199 + [0.2])
    assert all(map(math.isnan, verdict.lag([])))


def test_what_is_told_counts_each_kind_of_end(evidence):
    told = table.document(evidence, 60)

    assert (4, 2, 1, 0) == tuple(told[key] for key in ("requests", "right", "disconnects", "wrong"))
    assert ({"worker_crashed": 1}, {"kill": 1}, 1) == (told["errors"], told["faults"], told["loads"])
    assert "all is well" in table.render(told)
    assert "WRONG" in table.render({**told, "wrong_with": ["something"]})
