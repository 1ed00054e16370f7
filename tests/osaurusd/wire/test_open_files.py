"""Passing open files over a Unix socket."""

import os
import socket
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from osaurusd.wire import open_files
from osaurusd.wire.open_files import InvalidOffer, Offer


@pytest.fixture
def serve(home):
    """Run a function with the connection of the first client, in a thread; return the path of the socket."""
    threads = []

    def serve(talk):
        path = home / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def run():
            with listener, listener.accept()[0] as connection:
                talk(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return str(path)

    yield serve
    for thread in threads:
        thread.join()


def encode(folder, names):
    return msgspec.json.encode(Offer(folder, names)) + b"\n"


def test_files_arrive_in_order_although_their_sender_has_closed_them(serve, tmp_path):
    names = [f"file {number}" for number in range(300)]
    for name in names:
        (tmp_path / name).write_text(name)

    def send(connection):
        descriptors = [os.open(tmp_path / name, os.O_RDONLY) for name in names]
        open_files.send(connection, Offer(folder=True, names=names), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    offer, descriptors = open_files.receive(serve(send))

    contents = []
    for descriptor in descriptors:
        with os.fdopen(descriptor) as file:
            contents.append(file.read())
    assert (True, names, names) == (offer.folder, offer.names, contents)


@pytest.mark.parametrize(
    "offer",
    [
        b"",
        b"not JSON\n",
        b"[]\n",
        b'{"folder": true, "names": ["a"',
        encode(True, ["../a"]),
        encode(True, [".."]),
        encode(True, [""]),
        encode(True, ["a", "a"]),
        encode(False, []),
        encode(True, [str(number) for number in range(open_files.MAX_FILES + 1)]),
    ],
    ids=range(10),
)
def test_invalid_list_is_rejected(serve, offer):
    with pytest.raises(InvalidOffer, match=r"^the list of files "):
        open_files.receive(serve(lambda connection: connection.sendall(offer)))


@pytest.mark.parametrize("second", [b"", b".", b"x"])
def test_missing_file_is_rejected_and_no_descriptor_leaks(serve, tmp_path, second):
    (tmp_path / "a").touch()
    before = psutil.Process().num_fds()

    def send_one(connection):
        connection.sendall(encode(True, ["a", "b"]))
        with (tmp_path / "a").open() as file:
            socket.send_fds(connection, [b"."], [file.fileno()])
        connection.recv(1)
        connection.sendall(second)

    with pytest.raises(InvalidOffer, match="a file is missing"):
        open_files.receive(serve(send_one))

    # The server's thread may still be closing its two sockets.
    assert psutil.Process().num_fds() <= before + 2


def test_peer_that_disconnects_ends_the_transfer():
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, Path(os.devnull).open() as file, pytest.raises(OSError):  # noqa: PT011  which one depends on timing
        open_files.send(ours, Offer(False, ["x"]), [file.fileno()])
