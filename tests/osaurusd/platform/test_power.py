import asyncio
import os

import pytest

from osaurusd.platform.power import Awake
from tests.osaurusd.pool.asking import is_gone, until


@pytest.fixture
def caffeinate(tmp_path, monkeypatch):
    """A stand-in for caffeinate in PATH: notes its arguments and pid, and stays."""
    program = tmp_path / "bin" / "caffeinate"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$$ $@" >> "$0.ran"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program.with_suffix(".ran")


def ran(caffeinate):
    """The pids and arguments of all that ran."""
    return [line.split() for line in caffeinate.read_text().splitlines()] if caffeinate.exists() else []


async def test_sleep_is_prevented_while_it_is_held_and_no_longer(caffeinate):
    awake = Awake(platform="darwin", delay=0)
    with awake.held():
        await until(lambda: ran(caffeinate))
        ((pid, *arguments),) = ran(caffeinate)
        assert ["-i", "-w", str(os.getpid())] == arguments
        assert not is_gone(int(pid))

    await until(lambda: is_gone(int(pid)))


async def test_several_holders_share_one_process_until_the_last_has_gone(caffeinate):
    awake = Awake(platform="darwin", delay=0)
    with awake.held():
        with awake.held():
            await until(lambda: ran(caffeinate))
        await asyncio.sleep(0.05)
        ((pid, *_),) = ran(caffeinate)
        assert not is_gone(int(pid))

    await until(lambda: is_gone(int(pid)))


async def test_work_that_is_short_starts_nothing(caffeinate):
    awake = Awake(platform="darwin", delay=0.2)
    for _ in range(3):
        with awake.held():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)

    assert [] == ran(caffeinate)


async def test_other_systems_are_left_alone(caffeinate):
    with Awake(platform="linux", delay=0).held():
        await asyncio.sleep(0.1)

    assert [] == ran(caffeinate)


async def test_a_mac_without_the_command_serves_all_the_same():
    with Awake(platform="darwin", command=("/nonexistent/caffeinate",), delay=0).held():
        await asyncio.sleep(0.05)
