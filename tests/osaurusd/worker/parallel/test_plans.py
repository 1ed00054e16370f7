"""Plans: another executor that only gets them has the same caches at every step, whatever happens to the requests."""

import random
import time

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import framing, messages
from osaurusd.worker.engine import planner
from osaurusd.worker.engine.device import CPU
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.parallel import operations
from osaurusd.worker.parallel.follower import FollowerExecutor
from osaurusd.worker.parallel.leader import Leader, PlanWriter
from tests.osaurusd.worker.engine.harness import (
    AlternatingConstraint,
    build_request,
    run,
    run_until,
    step,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import tokens

RANDOM = SamplingParams(temperature=1.0, seed=5, frequency_penalty=0.2)
NO_LIMITS = Limits(prefix_cache_bytes=2**30)


class Exited(BaseException):
    """Stands for the exit of the process."""


def leave(reason):
    raise Exited(reason)


class AloneInGroup:
    """A group of one rank: another executor that gets its plans takes no part in what ranks exchange."""

    agree = bool

    def share(self, budget):
        pass


class Mirrored:
    """An engine that leads a group, and an executor that follows its plans.

    Attributes:
        plans: the operations of all plans.
    """

    def __init__(self, network, limits=NO_LIMITS, create=Engine):
        self.plans = []
        self.count = 0
        self.follower = None
        leader = Leader(AloneInGroup(), PlanWriter(self._receive), leave)
        self.engine = create(network, [], limits, leader=leader)
        self.follower = FollowerExecutor(network, self.engine.layout, time.perf_counter, CPU)

    @property
    def writer(self):
        return self.engine._executor.plans

    def _receive(self, frames):
        for frame in frames:
            decoder = framing.FrameDecoder(messages.TO_WORKER)
            decoder.feed(framing.encode([frame]))
            received = decoder.next()
            self.count += 1
            assert received.frame.number == self.count
            for operation in operations.DECODER.decode(received.frame.operations):
                self.plans.append(operation)
                if self.follower is not None:
                    self.follower.run(operation, received.blobs)

    def check(self):
        """Check that both executors have the same caches."""
        leader, follower = self.engine._executor, self.follower
        assert leader._prompts.keys() == follower._prompts.keys()
        assert [batch.ids for batch in leader.batches] == [batch.ids for batch in follower.batches]
        for ours, theirs in zip(leader.batches, follower.batches, strict=True):
            assert ours.lengths == theirs.lengths
            assert are_equal(ours._cache, theirs._cache)
        kept = {entry.data.number for entry in self.engine.prefix_cache._lru if hasattr(entry, "data")}
        kept |= {entry.states.number for entry in self.engine.prefix_cache._lru if hasattr(entry, "states")}
        assert kept <= follower._stored.keys()
        assert follower._stored.keys() - kept <= set(self.writer.released) | self.matched()

    def matched(self):
        """The numbers that prompts are still to be restored from."""
        states = [*self.engine._executor._prompts.values(), *self.engine.planner._prefill.tasks]
        matches = [state.match for state in states if state.match is not None]
        numbers = {block.number for match in matches for block in match.blocks}
        return numbers | {match.states.number for match in matches if match.states is not None}


def are_equal(caches, others):
    pairs = zip(arrays_of(caches), arrays_of(others), strict=True)
    return all(one.shape == other.shape and mx.array_equal(one, other).item() for one, other in pairs)


def arrays_of(caches):
    return [array for layer in caches for _, array in tree_flatten(layer.state) if isinstance(array, mx.array)]


@pytest.mark.parametrize("kind", ["llama", "lfm2", pytest.param("gemma3", marks=pytest.mark.long)])
def test_a_follower_has_the_caches_of_rank_0_at_every_step(network, kind):
    mirrored = Mirrored(network(kind), Limits(prefix_cache_bytes=120_000))
    engine, choose = mirrored.engine, random.Random(kind)
    shared = tokens(300)
    running = []
    for number in range(1, 19):
        prompt = shared[: choose.choice([20, 150, 290])] + tokens(choose.randrange(3, 90), start=number)
        request = build_request(
            number,
            prompt,
            choose.choice([1, 6, 12]),
            choose.choice([SamplingParams(temperature=0), RANDOM]),
            n=choose.choice([1, 1, 2]),
            logprobs=choose.choice([None, 2]),
            constraint=choose.choice([None, AlternatingConstraint()]),
        )
        running.append(number)
        engine.add(request)
        for _ in range(choose.randrange(3)):
            step(engine)
            mirrored.check()
        if choose.random() < 0.2:
            engine.cancel(choose.choice(running))
        if number % 8 == 0:
            engine.drop_caches()
        mirrored.check()
    while engine.busy:
        step(engine)
        mirrored.check()
    engine.drop_caches()
    assert not mirrored.follower._stored
    assert not mirrored.follower.batches
    assert {type(operation).__name__ for operation in mirrored.plans} >= {"Merge", "Release", "Store", "Remove"}


@pytest.mark.long
def test_a_preempted_sequence_is_resumed_on_every_rank(network, monkeypatch):
    monkeypatch.setattr(planner, "RESERVED_TOKENS", 64)
    mirrored = Mirrored(network(), Limits())
    engine = mirrored.engine
    # The intermediates of a pass are not counted: their size is measured.
    engine.memory.pass_bytes_per_token = engine.memory.score_bytes = 0
    engine.memory.set_limit(engine.memory.peak_bytes([68], [68]))
    for number in (1, 2):
        engine.add(build_request(number, tokens(4, start=number), 540, RANDOM, bounded=False))
    while engine.busy:
        for _ in range(50):
            step(engine)
        mirrored.check()
    begun = [operation.prompt for operation in mirrored.plans if isinstance(operation, operations.Begin)]
    assert begun.count((2, 0)) > 1


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), RANDOM])
def test_rank_0_generates_the_tokens_of_one_process(network, params):
    requests = [[build_request(number, tokens(9 * number), 12, params) for number in range(1, 6)] for _ in range(2)]
    alone = run(Engine(network(), [], NO_LIMITS), *requests[0])
    together = run(Mirrored(network()).engine, *requests[1])
    for number in range(1, 6):
        assert tokens_of(alone, number) == tokens_of(together, number)


def test_a_follower_restores_the_prefix_that_rank_0_has_found(network):
    mirrored = Mirrored(network("lfm2"))
    run(mirrored.engine, build_request(1, tokens(400)))
    frames = run(mirrored.engine, build_request(2, [*tokens(400), 5, 6]))
    mirrored.check()
    begin = [operation for operation in mirrored.plans if isinstance(operation, operations.Begin)][-1]
    assert begin.length == usage_of(frames, 2).cached_tokens > 256
    assert begin.blocks
    assert begin.states is not None


def test_blocks_that_a_waiting_prompt_needs_outlive_their_eviction(network):
    mirrored = Mirrored(network())
    engine = mirrored.engine
    run(engine, build_request(1, tokens(300)))
    engine.add(build_request(2, [*tokens(300), 5, 6]))
    engine.planner.admit()
    engine.planner.plan_decode()
    assert engine.planner._prefill.has_short(10**6)  # looks the prompt up
    engine.drop_caches()
    frames = run(engine)
    mirrored.check()
    assert usage_of(frames, 2).cached_tokens > 256


def test_a_failed_pass_ends_rank_0(network):
    mirrored = Mirrored(network())
    engine = mirrored.engine
    engine.add(build_request(1, tokens(10)))
    step(engine)

    class Broken:
        def __call__(self, *_, **__):
            raise RuntimeError("[ring] connection to a peer was lost")

    engine._executor.batches[0]._network = Broken()
    with pytest.raises(
        Exited, match=r"rank 0 failed at plan \d+: RuntimeError: \[ring\] connection to a peer was lost"
    ):
        step(engine)


def test_a_cancelled_prompt_is_dropped(network, monkeypatch):
    mirrored = Mirrored(network(), NO_LIMITS)
    engine = mirrored.engine
    monkeypatch.setattr(engine.chunk_sizer, "tokens", lambda *, shared: 256)
    engine.add(build_request(1, tokens(10), 100))
    run_until(engine, 1)
    engine.add(build_request(2, tokens(1500)))
    step(engine)
    assert (2, 0) in mirrored.follower._prompts
    engine.cancel(2)
    mirrored.check()
    assert (2, 0) not in mirrored.follower._prompts
    engine.cancel(1)
    mirrored.check()


def test_the_plan_of_a_decode_step_is_small():
    frames = []
    PlanWriter(frames.extend).write(operations.Decode(0, [200_000] * 32))
    assert len(framing.encode(frames)) < 350
