import queue
import sys
import threading

import pytest

from osaurusd.inference.events import Completed
from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.engine import Engine, Limits
from tests.osaurusd.worker.engine.harness import build_request, tokens_of
from tests.osaurusd.worker.networks import PROMPT, VOCABULARY, RecordingNetwork, greedy

POISON = VOCABULARY - 1
POISONED = [1, POISON, 2]

# Only a hung thread reaches this.
SECONDS = 60


class Panic(BaseException):
    """Like the exceptions of extensions written in Rust."""


class Runner:
    """A running thread, what it has emitted, and why it aborted."""

    def __init__(self, mlx_thread):
        self._emitted = queue.SimpleQueue()
        self._aborted = queue.SimpleQueue()
        self.frames = []
        self.expects_requests = False
        self.thread = mlx_thread(self._emitted.put, self._abort, lambda: self.expects_requests)
        self.thread.start()

    def serve(self, network):
        def adopt():
            self.engine = Engine(network, [], Limits(prefix_cache_bytes=2**30))
            self.thread.adopt(self.engine)

        self.run(adopt)

    def run(self, work):
        """Run work on the thread and wait for it."""
        done = threading.Event()
        self.thread.post(lambda: [work(), done.set()].clear())
        assert done.wait(SECONDS)

    def add(self, *requests):
        """Add requests between the same two steps."""
        self.thread.post(lambda: [frame for request in requests for frame in self.engine.add(request)])

    def until_ended(self, *ids):
        """Wait until all of these requests have ended; return the last frame of every request that has."""
        while not set(ids) <= self._ends().keys():
            self.frames += self._emitted.get(timeout=SECONDS)
        return self._ends()

    def abort_reason(self):
        return self._aborted.get(timeout=SECONDS)

    def _ends(self):
        return {
            frame.id: frame
            for frame in self.frames
            if isinstance(frame, messages.Failed)
            or (isinstance(frame, messages.Output) and isinstance(frame.event, Completed))
        }

    def _abort(self, reason):
        self._aborted.put(reason)
        sys.exit()  # ends the thread


@pytest.fixture
def runner(mlx_thread):
    return Runner(mlx_thread)


@pytest.fixture
def fragile(network):
    """A network that fails on demand."""
    return RecordingNetwork(network(), POISON)


def test_posted_work_runs_in_order_on_one_thread(runner):
    calls = []
    for number in range(20):
        runner.thread.post(lambda number=number: calls.append((number, threading.current_thread().name)))

    runner.run(lambda: None)

    assert [(number, "mlx") for number in range(20)] == calls


def test_requests_are_generated(runner, network):
    runner.serve(network())

    runner.add(build_request(1, PROMPT, 10), build_request(2, [5], 10))

    runner.until_ended(1, 2)
    assert greedy(network(), PROMPT, 10) == tokens_of(runner.frames, 1)
    assert greedy(network(), [5], 10) == tokens_of(runner.frames, 2)


def test_prompts_that_arrive_together_share_a_pass(runner, network, monkeypatch):
    recording = RecordingNetwork(network())
    runner.serve(recording)
    runner.run(lambda: monkeypatch.setattr(runner.engine.chunk_sizer, "batching_seconds", lambda tokens: SECONDS))
    recording.shapes.clear()
    runner.expects_requests = True

    runner.add(build_request(1, [5, 6, 7], 4))
    runner.run(lambda: None)
    assert not recording.shapes
    runner.expects_requests = False
    runner.add(build_request(2, [8, 9, 10], 4))

    runner.until_ended(1, 2)
    assert (2, 2) == recording.shapes[0]


def test_a_prompt_does_not_wait_for_others_forever(runner, network):
    runner.serve(network())
    runner.expects_requests = True

    runner.add(build_request(1, PROMPT, 4))

    runner.until_ended(1)
    assert greedy(network(), PROMPT, 4) == tokens_of(runner.frames, 1)


def test_posted_work_runs_between_two_steps(runner, network):
    runner.serve(network())
    runner.add(build_request(1, PROMPT, 100_000), build_request(2, PROMPT, 10))

    runner.until_ended(2)
    runner.run(lambda: runner.engine.cancel(1))

    assert not runner.engine.busy


def test_posted_work_that_fails_aborts_with_its_reason(runner):
    runner.thread.post(lambda: [].pop())

    assert runner.abort_reason() == "the MLX thread failed: IndexError: pop from empty list"


def test_a_base_exception_aborts_instead_of_ending_the_thread_silently(runner):
    def panic():
        raise Panic("index out of bounds")

    runner.thread.post(panic)

    assert runner.abort_reason() == "the MLX thread failed: Panic: index out of bounds"


# Failing networks


def test_a_failed_step_fails_all_requests_with_its_reason(runner, fragile):
    runner.serve(fragile)
    runner.add(build_request(1, PROMPT, 100_000), build_request(2, [5], 100_000), build_request(3, [5], 10))
    runner.until_ended(3)

    runner.run(lambda: setattr(fragile, "failures", 1))

    ends = runner.until_ended(1, 2)
    reason = "the model failed while generating: ValueError: broken"
    for id_ in (1, 2):
        assert messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) == ends[id_]


def test_requests_are_generated_after_a_failed_step(runner, fragile, network):
    runner.serve(fragile)
    runner.add(build_request(1, PROMPT, 100_000), build_request(2, [5], 10))
    runner.until_ended(2)
    runner.run(lambda: setattr(fragile, "failures", 1))
    runner.until_ended(1)

    runner.add(build_request(3, PROMPT, 10))

    runner.until_ended(3)
    assert greedy(network(), PROMPT, 10) == tokens_of(runner.frames, 3)


def test_a_poisoned_prompt_fails_only_its_request(runner, fragile, network):
    runner.serve(fragile)
    runner.add(build_request(1, PROMPT, 40), build_request(2, [5], 2))
    runner.until_ended(2)

    runner.add(build_request(3, POISONED), build_request(4, [*range(90)] * 10 + POISONED))
    ends = runner.until_ended(1, 3, 4)

    reason = "the model failed to process this prompt: ValueError: poisoned"
    for id_ in (3, 4):
        assert messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) == ends[id_]
    assert greedy(network(), PROMPT, 40) == tokens_of(runner.frames, 1)


def test_if_no_prompt_can_be_processed_all_requests_fail(runner, fragile, network):
    runner.serve(fragile)
    runner.run(lambda: setattr(fragile, "failures", 2))  # a prompt, and the probe that checks the model

    runner.add(build_request(1, PROMPT), build_request(2, [*range(90)] * 10))

    reason = "the model failed while generating: ValueError: broken"
    assert [reason] * 2 == [end.message for end in runner.until_ended(1, 2).values()]
    runner.add(build_request(3, PROMPT, 10))
    runner.until_ended(3)
    assert greedy(network(), PROMPT, 10) == tokens_of(runner.frames, 3)


def test_a_request_that_completes_in_the_failing_step_is_not_lost(runner, fragile, monkeypatch):
    """One step decodes the last token of the first request, then fails on the prompt of the second."""
    runner.serve(fragile)
    runner.run(lambda: monkeypatch.setattr(runner.engine.chunk_sizer, "tokens", lambda *, shared: 64))
    for count in range(1, 12):
        first, second = 2 * count, 2 * count + 1
        runner.add(build_request(first, PROMPT, count), build_request(second, [*[*range(50)] * 10, *POISONED], 5))

        ends = runner.until_ended(first, second)

        assert isinstance(ends[first], messages.Output)
        assert isinstance(ends[second], messages.Failed)


def test_a_second_consecutive_failure_aborts(runner, fragile):
    runner.serve(fragile)
    runner.add(build_request(1, PROMPT, 100_000), build_request(2, [5], 10))
    runner.until_ended(2)
    # A decode step; then a prompt, and the probe that checks the model.
    runner.run(lambda: setattr(fragile, "failures", 3))
    runner.until_ended(1)

    runner.add(build_request(3, PROMPT, 10))

    assert runner.abort_reason() == "the model failed while generating: ValueError: broken"


def test_failures_with_a_successful_decode_step_in_between_are_not_consecutive(runner, fragile, network):
    runner.serve(fragile)
    for number in range(3):
        endless, short = 10 * number, 10 * number + 1
        runner.add(build_request(endless, PROMPT, 100_000), build_request(short, [5], 5))
        runner.until_ended(short)
        runner.run(lambda: setattr(fragile, "failures", 1))
        runner.until_ended(endless)

    runner.add(build_request(100, PROMPT, 5))

    runner.until_ended(100)
    assert greedy(network(), PROMPT, 5) == tokens_of(runner.frames, 100)


@pytest.mark.parametrize("prompts_only", [True, False])
def test_a_failed_metal_command_aborts_at_once(runner, fragile, monkeypatch, prompts_only):
    """Later commands of the process would fail as well, or return wrong results."""
    reason = (
        "[METAL] Command buffer execution failed: Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)"
    )
    runner.serve(fragile)
    execute = runner.engine._executor.execute

    def fail(plan):
        if bool(plan.prefill) == prompts_only:
            raise RuntimeError(reason)
        return execute(plan)

    runner.run(lambda: monkeypatch.setattr(runner.engine._executor, "execute", fail))
    runner.add(build_request(1, PROMPT))

    assert f"the GPU failed: {reason}" == runner.abort_reason()
