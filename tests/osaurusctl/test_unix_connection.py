"""Waiting for the daemon."""

import contextlib
import os
import resource
import signal
import socket
import threading

import pytest

from osaurusctl.client import Client
from osaurusctl.errors import InvalidReply
from osaurusctl.unix_connection import UnixConnection

MORE_THAN_A_SOCKET_BUFFERS = bytes(32 * 1024 * 1024)


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
    try:
        yield
    finally:
        timer.join()


@contextlib.contextmanager
def give_up_later(end):
    """Call `end`, which ends the wait, if nothing else ends it. Yields an event that this sets."""
    gave_up = threading.Event()
    timer = threading.Timer(60, lambda: (gave_up.set(), end()))
    timer.start()
    yield gave_up
    timer.cancel()
    timer.join()


def test_ctrl_c_ends_a_wait_that_the_signal_does_not_interrupt(daemon, stream):
    with give_up_later(daemon.closing.set) as gave_up:
        with pytest.raises(KeyboardInterrupt), signal_soon(signal.SIGINT):
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
            give_up_later(daemon.closing.set) as gave_up,
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


@pytest.fixture
def listener(home):
    """A listening socket at `home / "s"`, from which no process accepts connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(home / "s"))
        listener.listen(0)
        yield listener


@contextlib.contextmanager
def connecting(home, timeout=None):
    with contextlib.closing(UnixConnection(home / "s", timeout)) as connection:
        yield connection


@pytest.fixture
def fill_backlog(home, listener):
    """Make the next connection wait for `accept`."""
    with contextlib.ExitStack() as stack:
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            try:
                client.connect(str(home / "s"))
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                pytest.skip("the system refuses connections that the backlog does not hold")
        yield


@pytest.mark.usefixtures("fill_backlog")
def test_ctrl_c_ends_a_wait_for_the_connection(home, listener):
    with connecting(home) as connection, give_up_later(lambda: listener.accept()[0].close()) as gave_up:
        with pytest.raises(KeyboardInterrupt), signal_soon(signal.SIGINT):
            connection.connect()
        assert not gave_up.is_set()


@pytest.mark.usefixtures("fill_backlog")
@pytest.mark.parametrize("timeout", [None, 60])
def test_connection_is_made_as_soon_as_the_backlog_has_room(home, listener, timeout):
    accepted = []
    timer = threading.Timer(0.1, lambda: accepted.append(listener.accept()[0]))
    timer.start()
    with connecting(home, timeout) as connection:
        connection.connect()
        timer.join()
        assert connection.sock.getpeername() == str(home / "s")
        assert connection.sock.gettimeout() == timeout
    for end in accepted:
        end.close()


@pytest.mark.usefixtures("fill_backlog")
def test_wait_for_the_connection_has_a_timeout(home):
    with connecting(home, 0.1) as connection, pytest.raises(TimeoutError, match="timed out"):
        connection.connect()


def test_ctrl_c_ends_a_wait_while_a_request_is_sent(home, listener):
    with connecting(home) as connection:
        connection.connect()
        with give_up_later(lambda: listener.accept()[0].close()) as gave_up:
            with pytest.raises(KeyboardInterrupt), signal_soon(signal.SIGINT):
                connection.request("POST", "/", MORE_THAN_A_SOCKET_BUFFERS)
            assert not gave_up.is_set()


def test_wait_while_a_request_is_sent_has_a_timeout(home, listener):
    with connecting(home, 0.1) as connection, pytest.raises(TimeoutError, match="timed out"):
        connection.request("POST", "/", MORE_THAN_A_SOCKET_BUFFERS)


@pytest.mark.parametrize("in_main_thread", [True, False])
@pytest.mark.parametrize("timeout", [None, 60])
def test_large_request_arrives_complete(home, listener, timeout, in_main_thread):
    body = os.urandom(3_000_001)
    received = bytearray()

    def receive():
        with listener.accept()[0] as end:
            while chunk := end.recv(65536):
                received.extend(chunk)

    def send():
        with connecting(home, timeout) as connection:
            connection.request("POST", "/", body)

    receiver = threading.Thread(target=receive)
    receiver.start()
    if in_main_thread:
        send()
    else:
        sender = threading.Thread(target=send)
        sender.start()
        sender.join()
    receiver.join()
    assert received.partition(b"\r\n\r\n")[2] == body


def test_descriptors_over_1023_can_wait(daemon):
    """A command that passes the files of a folder has as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("the system permits too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = []
    try:
        while not opened or opened[-1] < 1024:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        assert Client(daemon.home / "run" / "admin.sock").status().pid == daemon.pid
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
