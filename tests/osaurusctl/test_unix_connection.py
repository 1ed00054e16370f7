"""Waiting for the daemon."""

import contextlib
import signal
import threading

import pytest

from osaurusctl.client import Client
from osaurusctl.errors import InvalidReply


@pytest.fixture
def stream(daemon):
    """An answer that never ends, after its first chunk."""
    daemon.answers.append(["Once upon", daemon.HOLD])
    with contextlib.closing(Client(daemon.home / "run" / "admin.sock").chat({"model": "llama"})) as chunks:
        assert b"Once upon" in next(chunks)
        yield chunks


@contextlib.contextmanager
def signal_soon(number):
    """Send a signal to another thread, so that it interrupts no system call of this one.

    The same happens to a signal that arrives just before the call.
    """
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), number))
    timer.start()
    yield
    timer.join()


@contextlib.contextmanager
def give_up_later(daemon):
    """End the answer if nothing else ends it. Yields an event that this sets."""
    gave_up = threading.Event()
    timer = threading.Timer(5, lambda: (gave_up.set(), daemon.closing.set()))
    timer.start()
    yield gave_up
    timer.cancel()
    timer.join()


def test_ctrl_c_ends_a_wait_that_the_signal_does_not_interrupt(daemon, stream):
    with give_up_later(daemon) as gave_up:
        with signal_soon(signal.SIGINT), pytest.raises(KeyboardInterrupt):
            next(stream)
        assert not gave_up.is_set()
    stream.close()
    assert daemon.client_disconnected.wait(60)


def test_other_signal_does_not_end_a_wait(daemon, stream):
    handled = threading.Event()

    def handle(number, frame):
        handled.set()
        daemon.closing.set()

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        with (
            give_up_later(daemon) as gave_up,
            signal_soon(signal.SIGUSR1),
            pytest.raises(InvalidReply, match="before the answer"),
        ):
            next(stream)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert handled.is_set()
    assert not gave_up.is_set()


def test_wait_has_a_timeout(daemon):
    daemon.answering.clear()
    with pytest.raises(InvalidReply, match="timed out"):
        Client(daemon.home / "run" / "admin.sock", timeout=0.1).status()
    daemon.answering.set()
