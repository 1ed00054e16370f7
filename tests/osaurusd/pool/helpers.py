"""Requests to fake workers, a clock that tests move, and checks for leaked processes."""

import asyncio
import contextlib
import gc
import itertools
import os
import sys
import time
import warnings
from pathlib import Path

import psutil

from osaurusd.inference.events import Delta
from osaurusd.inference.request import ChatPrompt, GenerationRequest, Message, SamplingParams

ROOT = Path(__file__).parents[3]
# As a module, it is compiled only once.
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path[0] = {str(ROOT)!r}; from tests.fakes import worker; worker.main()",
)


def build_request(text="hello", **fields):
    """Build a request; the fake worker reads its instructions from the last message."""
    prompt = ChatPrompt(messages=[Message.from_text("user", text)])
    return GenerationRequest(prompt=prompt, sampling=SamplingParams(temperature=0), **fields)


async def collect(events):
    return [event async for event in events]


async def generate_text(client, text="hello"):
    """Run a request and return the text of its output."""
    events = await collect(client.generate(build_request(text)))
    return "".join(event.text for event in events if isinstance(event, Delta))


async def lease_and_generate(pool, record, text="hello"):
    """Run a request as a service does."""
    async with pool.lease(record) as lease:
        return await generate_text(lease.client, text)


async def first_delta(events):
    """Read until the first delta; return it."""
    async for event in events:
        if isinstance(event, Delta):
            return event
    raise AssertionError("no delta")


@contextlib.asynccontextmanager
async def running_request(pool, record, text="stall"):
    """Run a request in a task during the block, which begins after the first delta."""
    started = asyncio.Event()

    async def read():
        async with (
            pool.lease(record) as lease,
            contextlib.aclosing(lease.client.generate(build_request(text))) as events,
        ):
            await first_delta(events)
            started.set()
            await collect(events)

    reading = asyncio.create_task(read())
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not started.is_set():
        await reading
    yield reading
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def turns(count=10):
    """Run the event loop for this many iterations."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition, seconds=30):
    """Poll for a condition that triggers no event."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  see above
            await asyncio.sleep(0.001)


def block_until(condition, seconds=30):
    """Poll while the event loop is blocked, so that it then handles all consequences in one iteration."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def received(record):
    """Return the tags of the frames that this model's worker has received."""
    return (record.path / "received").read_text().split()


def has_exited(pid):
    """Whether the process has exited and been reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_dead(process):
    """Whether the process has exited, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class FakeClock:
    """A clock that only `advance` moves; replaces the event loop's."""

    def __init__(self):
        self.now = 1000.0
        self._numbers = itertools.count()
        self._timers = {}

    def time(self):
        return self.now

    def call_at(self, when, callback, *args):
        number = next(self._numbers)
        self._timers[number] = when, callback, args
        return FakeTimer(self._timers, number)

    def advance(self, seconds):
        """Move the time forward, and run the callbacks that are due in order."""
        end = self.now + seconds
        while due := [(when, number) for number, (when, *_) in self._timers.items() if when <= end]:
            when, number = min(due)
            _, callback, args = self._timers.pop(number)
            self.now = max(self.now, when)
            callback(*args)
        self.now = end

    @property
    def timers(self):
        """The times of the pending timers."""
        return sorted(when for when, *_ in self._timers.values())


class FakeTimer:
    def __init__(self, timers, number):
        self._timers = timers
        self._number = number

    def cancel(self):
        self._timers.pop(self._number, None)


class ProcessLeakCheck:
    """Remembers the child processes and descriptors at its creation."""

    def __init__(self):
        self._own = psutil.Process()
        self._children = set(self._own.children())
        self._descriptors = self._own.num_fds()

    def children(self):
        """Return the processes started since, zombies included."""
        return [child for child in self._own.children() if child not in self._children]

    async def wait_for_child(self):
        """Return the only process started since, once it exists."""
        await until(self.children)
        (child,) = self.children()
        return child

    async def check(self):
        """Fail if a process or descriptor has been leaked."""
        await turns()  # transports close in a later iteration
        try:
            assert self.children() == []
            assert self._descriptors >= self._own.num_fds()
        except AssertionError:
            with warnings.catch_warnings():  # the leak is reported here and must not fail the next test
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            raise


@contextlib.asynccontextmanager
async def no_leaked_processes():
    """Fail if the block leaves a process or a descriptor behind."""
    check = ProcessLeakCheck()
    yield check
    try:
        await check.check()
    finally:
        for child in check.children():
            child.kill()
            child.wait()
