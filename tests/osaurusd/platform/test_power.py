import asyncio
import os

import psutil
import pytest

from osaurusd.platform.power import PowerAssertion


@pytest.fixture
def caffeinate(tmp_path, monkeypatch):
    """A fake caffeinate in PATH that records its pid and arguments and keeps running."""
    program = tmp_path / "bin" / "caffeinate"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$$ $@" >> "$0.calls"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program.with_suffix(".calls")


def calls(caffeinate):
    """The pid and arguments of each call."""
    return [line.split() for line in caffeinate.read_text().splitlines()] if caffeinate.exists() else []


def is_running(pid):
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def wait_until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the process table has no event to wait for
            await asyncio.sleep(0.01)


async def test_sleep_is_prevented_only_while_the_assertion_is_held(caffeinate):
    power = PowerAssertion(platform="darwin", delay=0)
    with power.held():
        await wait_until(lambda: calls(caffeinate))
        ((pid, *arguments),) = calls(caffeinate)
        assert ["-i", "-w", str(os.getpid())] == arguments
        assert is_running(pid)

    await wait_until(lambda: not is_running(pid))


async def test_holders_share_one_process_until_the_last_one_releases_it(caffeinate):
    power = PowerAssertion(platform="darwin", delay=0)
    with power.held():
        with power.held():
            await wait_until(lambda: calls(caffeinate))
        ((pid, *_),) = calls(caffeinate)
        assert is_running(pid)

    await wait_until(lambda: not is_running(pid))


async def test_work_shorter_than_the_delay_starts_no_process(caffeinate):
    power = PowerAssertion(platform="darwin", delay=30)
    for _ in range(3):
        with power.held():
            await asyncio.sleep(0)

    assert all(task is asyncio.current_task() or task.cancelling() for task in asyncio.all_tasks())
    assert [] == calls(caffeinate)


async def test_other_systems_need_no_assertion(caffeinate):
    with PowerAssertion(platform="linux", delay=0).held():
        assert {asyncio.current_task()} == asyncio.all_tasks()

    assert [] == calls(caffeinate)


async def test_a_missing_command_does_not_disturb_the_holder():
    with PowerAssertion(platform="darwin", command=("/nonexistent/caffeinate",), delay=0).held():
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.shield(task), 30)
