"""Fixtures: two hosts that are not paired yet, and two that are."""

import socket

import pytest

from tests.daemons import second_address

from .nodes import pair, running


@pytest.fixture
async def a(tmp_path):
    async with running(tmp_path / "a", "127.0.0.1") as node:
        yield node


@pytest.fixture
async def b(tmp_path):
    async with running(tmp_path / "b", second_address(), lend_bytes=10**9) as node:
        yield node


@pytest.fixture
async def paired(a, b):
    await pair(a, b)
    return a, b


@pytest.fixture
def unused_port():
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]
