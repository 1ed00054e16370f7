import queue
import sys
import threading

import pytest

from osaurusd import ipc
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine import PREFILL_CHUNK_SHARED, Engine
from tests.osaurusd.worker.networks import VOCABULARY, Watched, greedy, sequence, written

POISON = VOCABULARY - 1
PROMPT = [7, 8, 9]
POISONED = [1, POISON, 2]
SECONDS = 10


class Runner:
    """A running thread, what it emitted, and why it gave up."""

    def __init__(self, make):
        self._emitted = queue.SimpleQueue()
        self._ended = queue.SimpleQueue()
        self.frames = []
        self.thread = make(self._emitted.put, self._give_up)
        self.thread.start()

    def adopt(self, network):
        """Serve this network."""

        def adopt():
            self.engine = Engine(network, [])
            self.thread.adopt(self.engine)

        self.do(adopt)

    def do(self, work):
        """Have something done there, and wait for it."""
        done = threading.Event()
        self.thread.post(lambda: (work(), done.set()))
        assert done.wait(SECONDS)

    def add(self, *sequences):
        """Add all of them between the same two steps."""
        self.thread.post(lambda: [self.engine.add(one) for one in sequences])

    def until(self, *ids):
        """All frames so far, once each of these sequences has ended."""
        while not set(ids) <= {frame.id for frame in self.frames if isinstance(frame, ipc.Done | ipc.Failed)}:
            self._take()
        return self.frames

    def reason(self):
        """Why it gave up, waited for."""
        return self._ended.get(timeout=SECONDS)

    def _take(self):
        self.frames += [frame for frame in self._emitted.get(timeout=SECONDS) if not isinstance(frame, ipc.Stats)]

    def _give_up(self, reason):
        self._ended.put(reason)
        sys.exit()  # ends the thread


@pytest.fixture
def runner(mlx_thread):
    return Runner(mlx_thread)


@pytest.fixture
def fragile(network):
    """A network that fails on demand."""
    return Watched(network(), POISON)


def text_of(frames, id_):
    return "".join(frame.text for frame in frames if isinstance(frame, ipc.Delta) and frame.id == id_)


def ends(frames):
    """The last frame of each sequence."""
    return {frame.id: frame for frame in frames if isinstance(frame, ipc.Done | ipc.Failed)}


def test_posted_work_is_done_in_order_on_one_thread(runner):
    done = []
    for number in range(20):
        runner.thread.post(lambda number=number: done.append((number, threading.current_thread().name)))

    runner.do(lambda: None)

    assert [(number, "mlx") for number in range(20)] == done


def test_sequences_are_answered(runner, network):
    runner.adopt(network())

    runner.add(sequence(1, PROMPT, 10), sequence(2, [5], 10))

    frames = runner.until(1, 2)
    assert written(greedy(network(), PROMPT, 10)) == text_of(frames, 1)
    assert written(greedy(network(), [5], 10)) == text_of(frames, 2)


def test_work_is_done_between_two_steps(runner, network):
    runner.adopt(network())
    runner.add(sequence(1, PROMPT, 100_000), sequence(2, PROMPT, 10))

    runner.until(2)
    runner.do(lambda: runner.engine.cancel(1))

    runner.do(lambda: None)
    assert not runner.engine.busy


def test_work_that_fails_ends_everything_with_its_reason(runner):
    runner.thread.post(lambda: [].pop())

    assert runner.reason() == "the MLX thread failed: IndexError: pop from empty list"


# A network that fails


def test_a_failing_step_fails_the_batch_with_its_reason(runner, fragile):
    runner.adopt(fragile)
    runner.add(sequence(1, PROMPT, 100_000), sequence(2, [5], 100_000), sequence(3, [5], 10))
    runner.until(3)

    runner.do(lambda: setattr(fragile, "failures", 1))

    found = ends(runner.until(1, 2))
    reason = "the model failed while generating: ValueError: broken"
    for id_ in (1, 2):
        assert ipc.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) == found[id_]


def test_after_a_failing_step_it_goes_on(runner, fragile, network):
    runner.adopt(fragile)
    runner.add(sequence(1, PROMPT, 100_000), sequence(2, [5], 10))
    runner.until(2)
    runner.do(lambda: setattr(fragile, "failures", 1))
    runner.until(1)

    runner.add(sequence(3, PROMPT, 10))

    assert written(greedy(network(), PROMPT, 10)) == text_of(runner.until(3), 3)


def test_a_prompt_that_cannot_be_processed_fails(runner, fragile):
    runner.adopt(fragile)

    runner.add(sequence(1, POISONED))

    found = ends(runner.until(1))[1]
    assert isinstance(found, ipc.Failed)
    assert "ValueError: poisoned" in found.message


def test_a_prompt_that_cannot_be_processed_costs_the_batch_and_not_the_next(runner, fragile, network):
    runner.adopt(fragile)
    runner.add(sequence(1, PROMPT, 100_000), sequence(2, [5], 10))
    runner.until(2)

    runner.add(sequence(3, POISONED))
    runner.until(1, 3)
    runner.add(sequence(4, PROMPT, 10))

    assert written(greedy(network(), PROMPT, 10)) == text_of(runner.until(4), 4)


def test_a_prompt_that_fails_half_way_fails(runner, fragile):
    runner.adopt(fragile)

    runner.add(sequence(1, [*range(90)] * 10 + POISONED))

    assert isinstance(ends(runner.until(1))[1], ipc.Failed)


def test_a_sequence_that_is_done_in_the_step_that_fails_is_not_lost(runner, fragile, network):
    """The step that decodes the last token of 1 then fails on the prompt of 2."""
    runner.adopt(fragile)
    long = [*range(50)] * 10
    chunks = -(-(len(long) - 1) // PREFILL_CHUNK_SHARED)
    for count in range(1, chunks + 6):
        runner.add(sequence(2 * count, PROMPT, count), sequence(2 * count + 1, [*long, *POISONED], 5))

        found = ends(runner.until(2 * count, 2 * count + 1))

        assert isinstance(found[2 * count + 1], ipc.Failed)
        # So that the next failure is not the second in a row.
        runner.add(sequence(1000 + count, [5], 1))
        runner.until(1000 + count)


def test_a_second_failure_in_a_row_gives_up(runner, fragile):
    runner.adopt(fragile)
    runner.add(sequence(1, PROMPT, 100_000), sequence(2, [5], 10))
    runner.until(2)
    runner.do(lambda: setattr(fragile, "failures", 2))
    runner.until(1)

    runner.add(sequence(3, PROMPT, 10))

    assert runner.reason() == "the model failed while generating: ValueError: broken"


def test_failures_with_a_step_that_works_between_them_are_not_in_a_row(runner, fragile, network):
    runner.adopt(fragile)
    for count in range(3):
        runner.add(sequence(10 * count, PROMPT, 100_000), sequence(10 * count + 1, [5], 5))
        runner.until(10 * count + 1)
        runner.do(lambda: setattr(fragile, "failures", 1))
        runner.until(10 * count)

    runner.add(sequence(100, PROMPT, 5))

    assert written(greedy(network(), PROMPT, 5)) == text_of(runner.until(100), 100)
