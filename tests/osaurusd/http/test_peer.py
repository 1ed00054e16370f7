"""The system knows who is at the other end of a socket."""

import os
import socket

import pytest

from osaurusd.http import peer


def test_the_other_end_of_our_own_socketpair_is_us():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer.socket_uid(ours) == os.geteuid()
        assert peer.socket_uid(theirs) == os.geteuid()


def test_a_connection_that_is_gone_has_nobody_at_its_other_end():
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        peer.socket_uid(ours)


class Gone:
    transport = None


def test_a_request_without_a_connection_is_nobodys():
    assert peer.uid(Gone()) is None
