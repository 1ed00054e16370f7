"""Test doubles, and helpers that run an engine or single decode batches with a tiny network."""

from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.inference.events import Completed, Delta, Finished, Started, TokenLogprob
from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import messages
from osaurusd.worker.engine.batch import BatchEntry, DecodeBatch
from osaurusd.worker.engine.batch_assignment import BatchAssignment
from osaurusd.worker.engine.device import CPU
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.images import FeatureCache
from osaurusd.worker.engine.planner import StepPlan
from osaurusd.worker.engine.prefix_cache import PrefixCache
from osaurusd.worker.engine.probe import Probe
from osaurusd.worker.engine.request import Choice, EngineRequest
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend.constraint import ConstraintFailed
from osaurusd.worker.frontend.text_assembler import OutputDelta
from osaurusd.worker.parallel.local import LocalExecutor
from tests.osaurusd.worker.networks import PROMPT, RecordingNetwork, expected_logprobs, is_greedy, prefill

GREEDY = SamplingParams(temperature=0)
OUTPUT_TOKENS = 6
UNLIMITED = 10**6
WITH_CACHE = Limits(prefix_cache_bytes=2**30)


class FakeOutput:
    """A sequence output that renders token 7 as `7 `.

    Args:
        stop: a token that completes the output; it is not rendered.
        unreadable: a token on which `add` fails.
        fails_to_finish: whether `finish` fails.
    """

    def __init__(self, stop=None, unreadable=None, fails_to_finish=False):
        self._stop = stop
        self._unreadable = unreadable
        self._fails_to_finish = fails_to_finish
        self.scores = []
        self.stopped = False
        self.matched_stop = None
        self.has_tool_calls = False
        self.reasoning_tokens = 0

    def add(self, token, score=None):
        self.scores.append(score)
        if token == self._unreadable:
            raise ValueError("unreadable")
        if token == self._stop:
            self.stopped = True
            self.matched_stop = to_text([token])
            return None
        return OutputDelta(text=to_text([token]))

    def finish(self, *, truncated):
        if self._fails_to_finish:
            raise ValueError("unfinished")
        return OutputDelta(text="cut ") if truncated else None


class AlternatingConstraint:
    """A constraint that allows odd and even tokens alternately, odd ones first.

    Args:
        limit: how many tokens it accepts before it fails.
    """

    def __init__(self, limit=10_000):
        self.tokens = []
        self._limit = limit

    def advance(self, token):
        self.tokens.append(token)
        if len(self.tokens) > self._limit:
            raise ConstraintFailed("limit reached")

    def fork(self):
        return AlternatingConstraint(self._limit)

    def allows(self, token):
        return token % 2 != len(self.tokens) % 2

    def fill(self, row):
        allowed = np.arange(row.size * 32) % 2 != len(self.tokens) % 2
        row[:] = np.packbits(allowed, bitorder="little").view(np.int32)


class FakeClock:
    """A clock that advances only on `advance`."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


# Running an engine


def build_request(
    id_, prompt, max_tokens=8, params=GREEDY, *, n=1, logprobs=None, output=FakeOutput, constraint=None, **fields
):
    """Build a request with `n` choices; `fields` are those of `EngineRequest`."""
    choices = [
        Choice(
            index,
            SamplingState(
                params,
                prompt_tokens=prompt,
                logprobs=logprobs,
                entropy=1000 * id_ + 7,
                index=index,
                constraint=constraint and constraint.fork(),
            ),
            output(),
        )
        for index in range(n)
    ]
    return EngineRequest(id=id_, prompt_tokens=list(prompt), choices=choices, max_tokens=max_tokens, **fields)


def echo(scores):
    """Echo a prompt as `prompt `, with the log-probabilities of its tokens."""
    logprobs = [TokenLogprob(text="", bytes=[], logprob=score.logprob) for score in scores]
    return OutputDelta(text="prompt ", logprobs=logprobs)


class NoProgress(Exception):
    """The engine does not reach the expected state."""


def step(engine):
    """Run one decode step and one prefill step; return all frames but `Stats`."""
    frames = engine.decode()
    frames += engine.prefill()
    return [frame for frame in frames if not isinstance(frame, messages.Stats)]


def run(engine, *requests):
    """Add requests, and run the engine until it is idle; return all frames."""
    frames = [frame for request in requests for frame in engine.add(request)]
    for _ in range(3000):
        if not engine.busy:
            return frames
        frames += step(engine)
    raise NoProgress


def run_until(engine, id_, count=1):
    """Run the engine until a request has got `count` events besides `Started`; return all frames."""
    frames = []
    while sum(not isinstance(event, Started) for event in events_of(frames, id_)) < count:
        if not engine.busy:
            raise NoProgress
        frames += step(engine)
    return frames


def events_of(frames, id_):
    return [frame.event for frame in frames if isinstance(frame, messages.Output) and frame.id == id_]


def failures_in(frames):
    """Return the `Failed` frames by request, each of which must be the last frame of its request."""
    failures = {frame.id: frame for frame in frames if isinstance(frame, messages.Failed)}
    for id_, failure in failures.items():
        assert failure is [frame for frame in frames if frame.id == id_][-1]
    return failures


def completed_ids(frames):
    return [frame.id for frame in frames if isinstance(frame, messages.Output) and isinstance(frame.event, Completed)]


def text_of(frames, id_, index=0):
    events = events_of(frames, id_)
    return "".join(event.text for event in events if isinstance(event, Delta) and event.index == index)


def tokens_of(frames, id_, index=0):
    """Return the tokens of a choice that `FakeOutput` has rendered."""
    return [int(word) for word in text_of(frames, id_, index).split() if word.isdigit()]


def usage_of(frames, id_):
    """Return the usage of a request, whose last event must be its only `Completed`."""
    (completed,) = [event for event in events_of(frames, id_) if isinstance(event, Completed)]
    assert completed is events_of(frames, id_)[-1]
    return completed.usage


def finish_reason_of(frames, id_, index=0):
    (finished,) = [e for e in events_of(frames, id_) if isinstance(e, Finished) and e.index == index]
    return finished.reason


def first_new_token(output):
    """Return the position of a token that does not occur earlier in the output, and is not among the first two."""
    return next(at for at in range(2, len(output)) if output[at] not in output[:at])


def to_text(tokens):
    return "".join(f"{token} " for token in tokens)


class SharedProbe:
    """Measures each network once."""

    _measured: ClassVar = {}

    @classmethod
    def from_network(cls, network, device=CPU, agree=bool):
        if type(network) is RecordingNetwork:
            network = network.network
        key = (id(network), device)
        if key not in cls._measured:
            # The network is kept, so that no other one gets its id.
            cls._measured[key] = network, Probe.from_network(network, device, agree)
        return cls._measured[key][1]


class CheckedEngine:
    """An engine whose outputs are compared with those of the network without any cache.

    Args:
        network: an mlx_lm model.
        limits: of the engine.
    """

    def __init__(self, network, limits=WITH_CACHE):
        self.network = RecordingNetwork(network)
        self.engine = Engine(self.network, [], limits)
        self._requests = {}

    def build(self, prompt, max_tokens=OUTPUT_TOKENS, **fields):
        request = build_request(len(self._requests) + 1, prompt, max_tokens, logprobs=0, **fields)
        self._requests[request.id] = request
        return request

    def generate(self, prompt, max_tokens=OUTPUT_TOKENS, **fields):
        """Return the output for a prompt, and how many of its tokens were cached."""
        request = self.build(prompt, max_tokens, **fields)
        return self.check(run(self.engine, request), request.id)

    def check(self, frames, id_):
        """Check the output of a request; return it, and how many tokens of the prompt were cached."""
        request = self._requests[id_]
        output = tokens_of(frames, id_)
        assert len(output) == request.max_tokens
        assert is_greedy(self.network, request.prompt_tokens, output)
        logprobs = [score.logprob for score in request.choices[0].output.scores]
        assert expected_logprobs(self.network, request.prompt_tokens, output) == pytest.approx(logprobs, abs=1e-3)
        return output, usage_of(frames, id_).cached_tokens

    def count_tokens(self, work):
        """Return what `work` returns, and how many tokens the network has processed for it."""
        self.network.shapes.clear()
        result = work()
        return result, sum(rows * width for rows, width in self.network.shapes)

    def start_background(self, max_tokens=200):
        """Start a request with two choices, and return it once both decode."""
        request = self.build(PROMPT, max_tokens, n=2)
        self.engine.add(request)
        run_until(self.engine, request.id, 2)
        self.network.shapes.clear()
        return request


class Decoder:
    """Sequences that decode, without a planner.

    Args:
        network: an mlx_lm model.
        padding_per_pass: see `BatchAssignment`; by default all sequences share a batch.
        device: the device that sampling is made for.

    Attributes:
        outputs: the token outputs of each sequence.
    """

    def __init__(self, network, padding_per_pass=UNLIMITED, device=CPU):
        self.network = RecordingNetwork(network)
        self._device = device
        self.layout = SharedProbe.from_network(network).layout
        self.executor = LocalExecutor(
            self.network, self.layout, PrefixCache(0, has_states=False), FeatureCache(0), FakeClock()
        )
        self.assignment = BatchAssignment(padding_per_pass, batchable=self.layout.batchable)
        self.outputs = {}
        self.prompts = {}

    @property
    def batch_lengths(self):
        return [batch.lengths for batch in self.executor.batches]

    def join(self, *prompts, params=GREEDY, **fields):
        """Add sequences, each with a batch of its own; return their ids."""
        return [self.join_state(prompt, SamplingState(params, prompt_tokens=prompt, **fields)) for prompt in prompts]

    def join_state(self, prompt, state):
        cache, logits = prefill(self.network, prompt)
        return self.join_batch([prompt], [state], cache, logits, merged=False)[0]

    def join_together(self, *prompts):
        """Add sequences with a merged cache; return their ids."""
        caches, logits = zip(*(prefill(self.network, prompt) for prompt in prompts), strict=True)
        states = [SamplingState(GREEDY, prompt_tokens=prompt) for prompt in prompts]
        return self.join_batch(prompts, states, self.layout.merge(caches), mx.concatenate(logits), merged=True)

    def join_batch(self, prompts, states, cache, logits, *, merged):
        """Add sequences that share a cache; return their ids."""
        ids = [len(self.outputs) + at for at in range(len(prompts))]
        entries = [BatchEntry(id_, state, len(prompt)) for id_, state, prompt in zip(ids, states, prompts, strict=True)]
        on_cpu = self._device == CPU
        options = {"device": self._device, "late_tokens": on_cpu, "answers_first": on_cpu}
        batch = DecodeBatch(self.network, self.layout, entries, cache, logits, merged=merged, **options)
        self.executor.batches.append(batch)
        self.assignment.add({entry.id: entry.length for entry in entries})
        self.outputs |= {id_: [] for id_ in ids}
        self.prompts |= dict(zip(ids, prompts, strict=True))
        return ids

    def leave(self, *ids):
        self.executor.remove(ids)
        self.assignment.remove(ids)

    def step(self, count=1):
        for _ in range(count):
            if not self.assignment.batches:
                return
            result = self.executor.execute(StepPlan(decode=tuple(map(tuple, self.assignment.batches))))
            self.assignment.advance({id_: len(outputs) for id_, outputs in result.tokens.items()})
            for id_, outputs in result.tokens.items():
                self.outputs[id_] += outputs

    def tokens(self, id_):
        return [output.token for output in self.outputs[id_]]

    def is_greedy(self, id_):
        return is_greedy(self.network, self.prompts[id_], self.tokens(id_))
