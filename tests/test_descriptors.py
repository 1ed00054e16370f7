"""Counting open file descriptors."""

import os
import socket
import sys

import pytest

from tests import descriptors


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what a descriptor refers to")
def test_descriptors_are_counted_by_kind(tmp_path):
    before = descriptors.by_kind(os.getpid())
    with (tmp_path / "file").open("w"), socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        pipe = os.pipe()
        new = descriptors.by_kind(os.getpid()) - before
        for end in pipe:
            os.close(end)

    assert {str(tmp_path / "file"): 1, "tcp listen": 1, f"unix socket {tmp_path / 'socket'}": 1, "pipe": 2} == new
