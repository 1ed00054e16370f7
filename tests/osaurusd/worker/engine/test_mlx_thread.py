import queue
import sys
import threading

import pytest

from osaurusd.inference.events import Completed
from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.engine import Engine, Limits
from tests.osaurusd.worker.networks import PROMPT, VOCABULARY, Watched, greedy, request, said_in, text_of

POISON = VOCABULARY - 1
POISONED = [1, POISON, 2]
SECONDS = 10


class Panic(BaseException):
    """As what extensions that are written in Rust raise."""


class Runner:
    """A running thread, what it emitted, and why it gave up."""

    def __init__(self, make):
        self._emitted = queue.SimpleQueue()
        self._ended = queue.SimpleQueue()
        self.frames = []
        self.expecting = False
        self.thread = make(self._emitted.put, self._give_up, lambda: self.expecting)
        self.thread.start()

    def adopt(self, network):
        """Serve this network."""

        def adopt():
            self.engine = Engine(network, [], Limits(prefix_cache_bytes=2**30))
            self.thread.adopt(self.engine)

        self.do(adopt)

    def do(self, work):
        """Have something done there, and wait for it."""
        done = threading.Event()
        self.thread.post(lambda: (work(), done.set()))
        assert done.wait(SECONDS)

    def add(self, *requests):
        """Add all of them between the same two steps."""
        self.thread.post(lambda: [frame for one in requests for frame in self.engine.add(one)])

    def until(self, *ids):
        """All frames so far, once each of these requests has ended."""
        while not set(ids) <= {frame.id for frame in self.frames if isinstance(frame, Completed | messages.Failed)}:
            self._take()
        return self.frames

    def reason(self):
        """Why it gave up, waited for."""
        return self._ended.get(timeout=SECONDS)

    def _take(self):
        self.frames += [frame for frame in self._emitted.get(timeout=SECONDS) if not isinstance(frame, messages.Stats)]

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


def ends(frames):
    """The last frame of each request."""
    return {frame.id: frame for frame in frames if isinstance(frame, Completed | messages.Failed)}


def test_posted_work_is_done_in_order_on_one_thread(runner):
    done = []
    for number in range(20):
        runner.thread.post(lambda number=number: done.append((number, threading.current_thread().name)))

    runner.do(lambda: None)

    assert [(number, "mlx") for number in range(20)] == done


def test_requests_are_answered(runner, network):
    runner.adopt(network())

    runner.add(request(1, PROMPT, 10), request(2, [5], 10))

    frames = runner.until(1, 2)
    assert greedy(network(), PROMPT, 10) == said_in(text_of(frames, 1))
    assert greedy(network(), [5], 10) == said_in(text_of(frames, 2))


def test_prompts_that_come_together_are_begun_together(runner, network, monkeypatch):
    watched = Watched(network())
    runner.adopt(watched)
    runner.do(lambda: monkeypatch.setattr(runner.engine._pace, "gathering_seconds", lambda tokens: SECONDS))
    watched.shapes.clear()
    runner.expecting = True

    runner.add(request(1, [5, 6, 7], 4))
    runner.do(lambda: None)
    assert not watched.shapes
    runner.expecting = False
    runner.add(request(2, [8, 9, 10], 4))

    runner.until(1, 2)
    assert (2, 2) == watched.shapes[0]


def test_a_prompt_does_not_wait_for_others_for_ever(runner, network):
    runner.adopt(network())
    runner.expecting = True

    runner.add(request(1, PROMPT, 4))

    assert greedy(network(), PROMPT, 4) == said_in(text_of(runner.until(1), 1))


def test_work_is_done_between_two_steps(runner, network):
    runner.adopt(network())
    runner.add(request(1, PROMPT, 100_000), request(2, PROMPT, 10))

    runner.until(2)
    runner.do(lambda: runner.engine.cancel(1))

    runner.do(lambda: None)
    assert not runner.engine.busy


def test_work_that_fails_ends_everything_with_its_reason(runner):
    runner.thread.post(lambda: [].pop())

    assert runner.reason() == "the MLX thread failed: IndexError: pop from empty list"


def test_a_panic_which_is_no_exception_does_not_leave_the_process_dead_inside(runner):
    def panic():
        raise Panic("index out of bounds")

    runner.thread.post(panic)

    assert runner.reason() == "the MLX thread failed: Panic: index out of bounds"


# A network that fails


def test_a_failing_step_fails_the_batch_with_its_reason(runner, fragile):
    runner.adopt(fragile)
    runner.add(request(1, PROMPT, 100_000), request(2, [5], 100_000), request(3, [5], 10))
    runner.until(3)

    runner.do(lambda: setattr(fragile, "failures", 1))

    found = ends(runner.until(1, 2))
    reason = "the model failed while generating: ValueError: broken"
    for id_ in (1, 2):
        assert messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) == found[id_]


def test_after_a_failing_step_it_goes_on(runner, fragile, network):
    runner.adopt(fragile)
    runner.add(request(1, PROMPT, 100_000), request(2, [5], 10))
    runner.until(2)
    runner.do(lambda: setattr(fragile, "failures", 1))
    runner.until(1)

    runner.add(request(3, PROMPT, 10))

    assert greedy(network(), PROMPT, 10) == said_in(text_of(runner.until(3), 3))


def test_a_prompt_that_cannot_be_processed_fails_and_costs_nobody_else(runner, fragile, network):
    runner.adopt(fragile)
    runner.add(request(1, PROMPT, 40), request(2, [5], 2))
    runner.until(2)

    runner.add(request(3, POISONED), request(4, [*range(90)] * 10 + POISONED))
    found = ends(runner.until(1, 3, 4))

    for id_ in (3, 4):
        reason = "the model failed on this prompt: ValueError: poisoned"
        assert messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) == found[id_]
    assert greedy(network(), PROMPT, 40) == said_in(text_of(runner.frames, 1))


def test_when_no_prompt_can_be_processed_all_fail_and_it_goes_on(runner, fragile, network):
    runner.adopt(fragile)
    runner.do(lambda: setattr(fragile, "failures", 2))  # a prompt, and then what tells whether it was to blame

    runner.add(request(1, PROMPT), request(2, [*range(90)] * 10))

    reason = "the model failed while generating: ValueError: broken"
    assert [reason] * 2 == [end.message for end in ends(runner.until(1, 2)).values()]
    runner.add(request(3, PROMPT, 10))
    assert greedy(network(), PROMPT, 10) == said_in(text_of(runner.until(3), 3))


def test_a_request_that_is_done_in_the_step_that_fails_is_not_lost(runner, fragile, monkeypatch):
    """The step that decodes the last token of the first then fails on the prompt of the second."""
    runner.adopt(fragile)
    runner.do(lambda: monkeypatch.setattr(runner.engine._pace, "tokens", lambda *, shared: 64))
    for count in range(1, 12):
        runner.add(request(2 * count, PROMPT, count), request(2 * count + 1, [*[*range(50)] * 10, *POISONED], 5))

        found = ends(runner.until(2 * count, 2 * count + 1))

        assert [Completed, messages.Failed] == [type(found[2 * count + at]) for at in range(2)]


def test_a_second_failure_in_a_row_gives_up(runner, fragile):
    runner.adopt(fragile)
    runner.add(request(1, PROMPT, 100_000), request(2, [5], 10))
    runner.until(2)
    # A step; then a prompt, and what tells whether it was to blame.
    runner.do(lambda: setattr(fragile, "failures", 3))
    runner.until(1)

    runner.add(request(3, PROMPT, 10))

    assert runner.reason() == "the model failed while generating: ValueError: broken"


def test_failures_with_a_step_that_works_between_them_are_not_in_a_row(runner, fragile, network):
    runner.adopt(fragile)
    for count in range(3):
        runner.add(request(10 * count, PROMPT, 100_000), request(10 * count + 1, [5], 5))
        runner.until(10 * count + 1)
        runner.do(lambda: setattr(fragile, "failures", 1))
        runner.until(10 * count)

    runner.add(request(100, PROMPT, 5))

    assert greedy(network(), PROMPT, 5) == said_in(text_of(runner.until(100), 100))
