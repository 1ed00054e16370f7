"""Child processes; each process has tests of its actual work elsewhere."""

import asyncio
import sys

import pytest

from osaurusd.downloads import messages
from osaurusd.rpc import child, job
from osaurusd.rpc.child import PROGRESS_INTERVAL_SECONDS, Throttle
from osaurusd.rpc.job import JobDied


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-c", "import sys; sys.exit(3)"), "exit code 3"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), "killed by SIGKILL"),
        (
            (sys.executable, "-c", "import os, sys; os.write(int(sys.argv[2]), bytes([0, 0, 0, 1, 0, 0, 0, 0, 9]))"),
            "invalid frame",
        ),
        (("/nonexistent/command",), "could not start /nonexistent/command"),
    ],
)
async def test_process_without_a_result_is_an_error_that_states_why(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(JobDied, match=reason):
        async for _ in job.run(command, [], messages.DECODER):
            pass


async def test_process_that_keeps_crashing_is_restarted_after_ever_longer_waits(monkeypatch) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", wait)
    received = [0, 0, 5, 5, 5, 5, 5, 5, 5]

    async def crash() -> None:
        received.pop(0)
        raise JobDied("exit code 3")

    with pytest.raises(JobDied, match="the process for the copy of m failed 6 times without progress: exit code 3"):
        await job.run_until_done("copy of m", crash, lambda: received[0])
    assert waits == [0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_progress_is_throttled_except_for_the_ends_of_a_stage() -> None:
    now = 100.0
    throttle = Throttle(lambda: now)
    allowed = []
    for done in range(1001):
        if throttle.allows("hash", done, 1000):
            allowed.append(done)
        now += 0.001

    assert (0, 1000) == (allowed[0], allowed[-1])
    assert len(allowed) <= 1 / PROGRESS_INTERVAL_SECONDS + 2
    assert [0, 10] == [done for done in (0, 5, 10) if throttle.allows("convert", done, 10)]


def test_file_names_that_are_not_utf8_become_printable() -> None:
    assert "\ufffd.txt: ü" == child.printable(b"\xff.txt: \xc3\xbc".decode("utf-8", "surrogateescape"))
