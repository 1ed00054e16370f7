"""The request queue, the memory limit, and preemption, with an engine."""

from dataclasses import replace

import mlx.core as mx
import pytest

from osaurusd.inference.request import SamplingParams
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine import planner
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.planner import MAX_SEQUENCES
from tests.osaurusd.worker.engine.harness import (
    GREEDY,
    AlternatingConstraint,
    build_request,
    completed_ids,
    echo,
    failures_in,
    finish_reason_of,
    run,
    step,
    text_of,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import PROMPT, RecordingNetwork, is_greedy, tokens

pytestmark = pytest.mark.usefixtures("share_probes")

# The queue


def test_a_request_is_rejected_if_too_many_are_waiting(network):
    engine = Engine(network(), [], Limits(max_waiting=3))
    for id_ in range(MAX_SEQUENCES):
        engine.add(build_request(id_, [id_, 1], 60))
        step(engine)

    rejected = failures_in([frame for at in range(5) for frame in engine.add(build_request(100 + at, PROMPT, 4))])

    assert [103, 104] == list(rejected)
    assert ErrorCode.QUEUE_FULL == rejected[104].code
    assert "3 requests are already waiting" in rejected[104].message
    assert {100, 101, 102} == {id_ for id_ in completed_ids(run(engine)) if id_ >= 100}


def test_a_continuation_is_not_rejected(network):
    engine = Engine(network("llama4"), [], Limits(max_waiting=1))
    for id_ in range(2):
        assert [] == engine.add(build_request(id_, PROMPT, 5))

    assert [2] == [*failures_in(engine.add(build_request(2, PROMPT, 5)))]
    assert [] == engine.add(build_request(3, PROMPT, 5, continuation=True))
    assert {0, 1, 3} == set(completed_ids(run(engine)))


def test_requests_that_can_start_at_once_do_not_count_as_waiting(network):
    engine = Engine(network(), [], Limits(max_waiting=3))

    frames = run(engine, *[build_request(id_, [id_, 1], 4) for id_ in range(MAX_SEQUENCES)])

    assert {} == failures_in(frames)


def test_all_choices_of_a_request_count_as_one_waiting_request(network):
    engine = Engine(network("llama4"), [], Limits(max_waiting=2))

    frames = run(engine, build_request(1, PROMPT, 2, n=4), build_request(2, PROMPT, 2))

    assert {} == failures_in(frames)


# The memory limit


class LimitedEngine:
    """An engine with exactly the memory for the given sequences.

    Args:
        network: an mlx_lm model.
        decoding: final lengths of sequences that decode together.
        joining: final lengths of sequences that join them.
        prefix_cache_bytes: of the engine.
        spare: additional bytes.
    """

    def __init__(self, network, monkeypatch, decoding, joining=(), prefix_cache_bytes=0, spare=0):
        self.network = RecordingNetwork(network)
        self.engine = Engine(self.network, [], Limits(prefix_cache_bytes=prefix_cache_bytes))
        monkeypatch.setattr(self.engine.chunk_sizer, "record_prefill", lambda tokens, seconds: None)
        monkeypatch.setattr(self.engine.chunk_sizer, "record_decode", lambda seconds: None)
        memory = self.engine.memory
        memory.pass_bytes_per_token = memory.score_bytes = 0
        self.limit = memory.limit_bytes = memory.peak_bytes(decoding, joining) + spare
        self.engine._limits = replace(self.engine._limits, memory_bytes=self.limit)
        self.network.shapes.clear()
        self.preempted = []
        requeue = self.engine.planner.requeue
        monkeypatch.setattr(
            self.engine.planner,
            "requeue",
            lambda sequence: self.preempted.append(sequence.request.id) or requeue(sequence),
        )

    def run(self, *requests):
        """Return all frames, and how many sequences decoded together at most."""
        frames = run(self.engine, *requests)
        return frames, max((rows for rows, _ in self.network.shapes), default=0)


@pytest.fixture
def limited(network, monkeypatch):
    return lambda *args, kind="llama", **options: LimitedEngine(network(kind), monkeypatch, *args, **options)


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"prompt": PROMPT, "max_tokens": 4000}, ("max_tokens",)),
        ({"prompt": PROMPT, "max_tokens": 1500, "n": 2}, ("max_tokens",)),
        ({"prompt": tokens(3000), "max_tokens": 10}, ("prompt",)),
        ({"prompt": tokens(3000), "max_tokens": 10, "bounded": False}, ("prompt",)),
    ],
)
def test_a_request_that_can_never_fit_is_rejected_with_the_numbers(limited, fields, location):
    engine = limited([], [2048]).engine

    (failed,) = engine.add(build_request(1, **fields))

    assert (ErrorCode.REQUEST_EXCEEDS_MEMORY, location) == (failed.code, failed.location)
    needed = len(fields["prompt"]) + (fields["max_tokens"] if fields.get("bounded", True) else 1)
    assert str(needed) in failed.message
    assert str(engine.memory.max_tokens(fields.get("n", 1))) in failed.message
    assert not engine.busy


def test_an_unbounded_choice_ends_at_the_memory_limit(limited):
    frames, _ = limited([], [256]).run(build_request(1, PROMPT, 100_000, bounded=False))

    assert "length" == finish_reason_of(frames, 1)
    assert 256 - 3 == usage_of(frames, 1).completion_tokens


def test_requests_that_do_not_fit_yet_wait(limited, network):
    frames, together = limited([256], [256]).run(*[build_request(id_, [id_, 2], 60) for id_ in range(3)])

    assert together == 2
    assert {} == failures_in(frames)
    for id_ in range(3):
        output = tokens_of(frames, id_)
        assert 60 == len(output)
        assert is_greedy(network(), [id_, 2], output)


def test_a_request_that_fits_does_not_overtake_one_that_waits(limited):
    requests = [build_request(id_, [id_], 60) for id_ in (1, 2, 3)]

    frames, _ = limited([256], [256]).run(*requests, build_request(4, [4], 10))

    assert [1, 2, 3, 4] == list(dict.fromkeys(frame.id for frame in frames))


def test_stored_prefixes_are_evicted_before_a_request_waits(limited):
    engine = limited([512], [512], prefix_cache_bytes=2**30)
    engine.run(build_request(1, tokens(400), 4), build_request(2, tokens(400, 9000), 4))
    assert engine.engine.stats().prefix_cache_bytes > 0

    engine.network.shapes.clear()
    _, together = engine.run(build_request(3, [3], 300), build_request(4, [4], 300))

    assert together == 2


def test_the_prefix_cache_never_uses_reserved_memory(limited):
    limited = limited([512], [512], prefix_cache_bytes=2**30, spare=50_000)
    engine = limited.engine
    engine.add(build_request(1, tokens(400), 100))
    engine.add(build_request(2, tokens(400, 9000), 100))

    while engine.busy:
        step(engine)
        assert engine.reserved_bytes + engine.stats().prefix_cache_bytes <= limited.limit


def test_new_limits_shrink_the_prefix_cache_and_requests_continue(network):
    engine = Engine(network(), [0], Limits(prefix_cache_bytes=10**7))
    run(engine, build_request(1, tokens(600), 3))
    assert engine.stats().prefix_cache_bytes > 0

    engine.set_limits(Limits(memory_bytes=mx.get_active_memory() + 10**9))

    assert engine.stats().prefix_cache_bytes == 0
    assert [2] == completed_ids(run(engine, build_request(2, tokens(600), 3)))


# Preemption


# Two sequences may start, and one is preempted once they have 64 tokens each.
TWO_SEQUENCES = [4 + 64], [4 + 64]
TOKENS = 540
RANDOM = SamplingParams(temperature=1.2, seed=3, frequency_penalty=0.1, top_p=0.9)


@pytest.fixture
def small_reservations(monkeypatch):
    monkeypatch.setattr(planner, "RESERVED_TOKENS", 64)


@pytest.mark.parametrize(
    ("kind", "prefix_cache_bytes"),
    [
        ("llama", 2**30),
        pytest.param("llama", 0, marks=pytest.mark.long),
        pytest.param("gemma3", 2**30, marks=pytest.mark.long),
    ],
)
def test_a_preempted_choice_continues_with_the_same_output(
    limited, small_reservations, network, kind, prefix_cache_bytes
):
    limited = limited(*TWO_SEQUENCES, kind=kind, prefix_cache_bytes=prefix_cache_bytes)
    params = {1: GREEDY, 2: RANDOM}
    prompts = {id_: [id_, 2, 3, 4] for id_ in params}
    separate = text_of(run(Engine(network(kind), [], Limits()), build_request(2, prompts[2], TOKENS, RANDOM)), 2)
    requests = [build_request(id_, prompts[id_], TOKENS, params[id_], bounded=False, logprobs=1) for id_ in params]

    frames, together = limited.run(*requests)

    assert (2, [2]) == (together, limited.preempted)
    assert is_greedy(network(kind), prompts[1], tokens_of(frames, 1))
    assert separate == text_of(frames, 2)
    assert [TOKENS] * 2 == [usage_of(frames, id_).completion_tokens for id_ in params]
    assert [TOKENS] * 2 == [len(request.choices[0].output.scores) for request in requests]


def test_a_preempted_choice_keeps_its_constraint(limited, small_reservations):
    limited = limited(*TWO_SEQUENCES)

    frames, _ = limited.run(
        *[
            build_request(id_, [id_, 2, 3, 4], TOKENS, bounded=False, constraint=AlternatingConstraint())
            for id_ in (1, 2)
        ]
    )

    assert [2] == limited.preempted
    for id_ in (1, 2):
        assert [1, 0] * (TOKENS // 2) == [token % 2 for token in tokens_of(frames, id_)]


@pytest.mark.long
def test_a_preempted_choice_echoes_its_prompt_once(limited, small_reservations):
    limited = limited(*TWO_SEQUENCES)

    frames, _ = limited.run(
        *[
            build_request(id_, [id_, 2, 3, 4], TOKENS, bounded=False, echo=echo, logprobs=0, needs_prompt_logprobs=True)
            for id_ in (1, 2)
        ]
    )

    assert [2] == limited.preempted
    assert [1, 1] == [text_of(frames, id_).count("prompt") for id_ in (1, 2)]
