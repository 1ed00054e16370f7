"""The planner on its own: no network, no arrays, no clock."""

import ast
import inspect
import itertools
from pathlib import Path

import pytest

from osaurusd.errors import QueueFull, RequestExceedsMemory
from osaurusd.worker.engine.batch_assignment import BatchAssignment
from osaurusd.worker.engine.chunk_sizer import BURST_PASS_TOKENS, ChunkSizer
from osaurusd.worker.engine.images import FeatureCache
from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.memory import MemoryBudget
from osaurusd.worker.engine.planner import Planner, PrefillChunk, StepPlan
from osaurusd.worker.engine.prefix_cache import PrefixCache
from tests.osaurusd.worker.engine.harness import build_request
from tests.osaurusd.worker.networks import tokens

LAYOUT = CacheLayout((), 10, (), 0, has_states=False, batchable=True)


class RecordingPrefixCache(PrefixCache):
    def __init__(self):
        super().__init__(2**30, has_states=False)
        self.caps = []

    def set_cap(self, nbytes):
        self.caps.append(nbytes)
        super().set_cap(nbytes)


@pytest.fixture
def prefix_cache():
    return RecordingPrefixCache()


@pytest.fixture
def make_planner(prefix_cache):
    def make_planner(limit_bytes=None, max_waiting=64, padding_per_pass=10**6):
        sizer = ChunkSizer(token_seconds=0.01)
        memory = MemoryBudget(LAYOUT, 0, limit_bytes, 0, 0, sizer)
        return Planner(
            memory,
            sizer,
            prefix_cache,
            FeatureCache(0),
            max_waiting=max_waiting,
            padding_per_pass=padding_per_pass,
        )

    return make_planner


@pytest.fixture
def planner(make_planner):
    return make_planner()


def prefill(planner):
    """Run the prefill passes of one step; return their plans."""
    planner.admit()
    planner.begin_prefill()
    plans = []
    while plan := planner.plan_prefill():
        plans.append(plan)
        planner.record_prefill(plan, 0.01 * plan.prefill_tokens)
    planner.take_started()
    planner.start_decoding()
    return plans


def decode(planner, count=1):
    """Give each decoding sequence one token, `count` times."""
    for _ in range(count):
        planner.record_decode(dict.fromkeys(itertools.chain(*planner.plan_decode().decode), 1))
        for sequence in planner.decoding.values():
            sequence.choice.output_tokens.append(0)


@pytest.mark.parametrize("module", ["planner", "prefill_queue", "prefix_cache", "chunk_sizer", "memory", "images"])
def test_planning_modules_import_neither_mlx_nor_a_clock(module):
    path = Path(inspect.getfile(Planner)).with_name(f"{module}.py")
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}

    assert not {name.partition(".")[0] for name in names} & {"mlx", "mlx_lm", "time"}


def test_an_idle_planner_plans_nothing(planner):
    assert not planner.busy
    assert planner.plan_decode() is None
    assert not planner.begin_prefill()


def test_a_prompt_is_split_into_chunks_and_then_decoded(planner):
    planner.submit(build_request(1, tokens(150), n=2))

    assert [
        [StepPlan(prefill=(PrefillChunk((1, 0), 0, 80, last=False),))],
        [StepPlan(prefill=(PrefillChunk((1, 0), 80, 134, last=False),))],
        [StepPlan(prefill=(PrefillChunk((1, 0), 134, 150, last=True, store=True),))],
    ] == [prefill(planner) for _ in range(3)]
    assert StepPlan(decode=(((1, 0), (1, 1)),)) == planner.plan_decode()


def test_plans_do_not_change_when_the_planner_advances(planner):
    planner.submit(build_request(1, [1, 2, 3]))
    prefill(planner)
    plan = planner.plan_decode()

    planner.submit(build_request(2, [4, 5, 6]))
    prefill(planner)

    assert StepPlan(decode=(((1, 0),),)) == plan
    assert StepPlan(decode=(((1, 0), (2, 0)),)) == planner.plan_decode()


def test_short_prompts_share_a_pass(planner):
    for id_, length in enumerate((30, 10, 20)):
        planner.submit(build_request(id_, tokens(length, 1000 * id_)))

    (plan, *_) = prefill(planner)

    assert [(1, 0), (2, 0)] == [chunk.prompt for chunk in plan.prefill][:2]
    assert len(plan.prefill) * max(chunk.end - chunk.start for chunk in plan.prefill) == plan.prefill_tokens == 90


def test_a_full_queue_rejects_a_request(make_planner):
    planner = make_planner(limit_bytes=10 * 256, max_waiting=1)
    planner.submit(build_request(1, [1], 10))
    planner.submit(build_request(2, [2], 10))

    with pytest.raises(QueueFull):
        planner.submit(build_request(3, [3], 10))


def test_a_request_longer_than_memory_is_rejected(make_planner):
    with pytest.raises(RequestExceedsMemory) as rejection:
        make_planner(limit_bytes=10 * 1024).submit(build_request(1, [1], 2000))

    assert ("max_tokens",) == rejection.value.location


def test_cancelling_returns_tasks_and_decoding_sequences(planner):
    planner.submit(build_request(1, [1, 2, 3]))
    prefill(planner)
    planner.submit(build_request(2, tokens(300)))

    assert ([], [(1, 0)]) == ids(planner.cancel(1))
    assert ([(2, 0)], []) == ids(planner.cancel(2))
    assert [1] == planner.request_ids


def ids(cancelled):
    tasks, sequences = cancelled
    return [task.id for task in tasks], [sequence.id for sequence in sequences]


def test_the_youngest_sequence_is_preempted_and_resumes_first(make_planner, prefix_cache):
    """Two sequences of 768 tokens may join each other, but two of 1792 do not fit."""
    limit = 10 * 768 * 4
    planner = make_planner(limit)
    for id_ in (1, 2, 3):
        planner.submit(build_request(id_, [id_], 10_000, bounded=False))
    prefill(planner)
    decode(planner, 512)
    assert [] == planner.extend_reservations()
    decode(planner, 512)
    prefix_cache.caps.clear()

    preempted = planner.extend_reservations()

    assert [2] == [sequence.request.id for sequence in preempted]
    # The reservations still include the preempted sequence: using them would evict prefixes for no reason.
    assert [] == prefix_cache.caps
    planner.remove(preempted)
    planner.requeue(preempted[0])
    assert [limit - planner.reserved_bytes] == prefix_cache.caps
    assert [2, 3, 1] == planner.request_ids


# Batches


@pytest.mark.parametrize(("padding", "expected"), [(10**6, [[1, 2, 3]]), (10, [[1, 2], [3]]), (9, [[1], [2], [3]])])
def test_sequences_share_a_batch_if_padding_costs_less_than_a_pass(padding, expected):
    assignment = BatchAssignment(padding, batchable=True)
    for id_, length in ((1, 100), (2, 110), (3, 300)):
        assignment.add({id_: length})

    assert expected == assignment.batches


def test_batches_are_merged_once_padding_has_become_cheap():
    assignment = BatchAssignment(40, batchable=True)
    assignment.add({1: 100, 2: 100, 3: 100})
    assignment.add({4: 120})
    assert [[1, 2, 3], [4]] == assignment.batches

    assignment.advance(dict.fromkeys((1, 2, 3, 4), 2))
    assignment.remove([1])

    assert [[2, 3, 4]] == assignment.batches


def test_sequences_that_grow_faster_get_a_batch_of_their_own():
    assignment = BatchAssignment(40, batchable=True)
    assignment.add({1: 100})
    assignment.advance({1: 50})
    assignment.add({2: 100})

    assert [[1], [2]] == assignment.batches


def test_sequences_never_share_a_batch_if_the_model_cannot_batch():
    assignment = BatchAssignment(10**6, batchable=False)
    assignment.add({1: 100})
    assignment.add({2: 100})
    assignment.remove([3])

    assert [[1], [2]] == assignment.batches


# Bursts


@pytest.fixture
def fast_planner(make_planner):
    planner = make_planner()
    planner._chunk_sizer.token_seconds = 0.005
    return planner


def burst(planner, *lengths, first_id=1):
    for id_, length in enumerate(lengths, first_id):
        planner.submit(build_request(id_, tokens(length, 1000 * id_)))


def test_prompts_that_arrive_together_share_a_pass(fast_planner):
    burst(fast_planner, *[56] * 8)

    (plan,) = prefill(fast_planner)

    assert 8 == len(plan.prefill)
    assert 8 == len(fast_planner.plan_decode().decode[0])


def test_a_prompt_that_arrives_during_the_first_pass_decodes_with_the_others(fast_planner):
    burst(fast_planner, 56)
    prefill(fast_planner)
    burst(fast_planner, *[56] * 7, first_id=2)
    fast_planner.admit()

    assert fast_planner.plan_decode() is None
    (plan,) = prefill(fast_planner)

    assert 7 == len(plan.prefill)
    assert 8 == len(fast_planner.plan_decode().decode[0])


def test_complete_prompts_decode_before_a_long_prompt(fast_planner):
    burst(fast_planner, 56, 2000)

    prefill(fast_planner)

    assert StepPlan(decode=(((1, 0),),)) == fast_planner.plan_decode()


def test_a_burst_is_bounded(fast_planner):
    burst(fast_planner, 56)
    prefill(fast_planner)
    processed = 0
    for number in range(100):
        burst(fast_planner, 56, first_id=2 + number)
        fast_planner.admit()
        if fast_planner.plan_decode():
            break
        processed += sum(plan.prefill_tokens for plan in prefill(fast_planner))

    assert 0 < processed <= 2 * BURST_PASS_TOKENS


def test_sequences_that_have_begun_to_decode_do_not_wait_for_a_burst(fast_planner):
    burst(fast_planner, 56)
    prefill(fast_planner)
    decode(fast_planner)
    burst(fast_planner, *[56] * 7, first_id=2)

    prefill(fast_planner)

    assert fast_planner.plan_decode() is not None


def test_prompts_of_very_different_lengths_do_not_share_a_pass(fast_planner):
    burst(fast_planner, 10, 12, 200)

    (plan,) = prefill(fast_planner)

    assert [(1, 0), (2, 0)] == [chunk.prompt for chunk in plan.prefill]
