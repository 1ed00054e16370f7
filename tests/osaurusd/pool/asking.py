"""Asking fake workers, and looking for what they leave behind."""

import asyncio
import contextlib
import gc
import os
import sys
import time
import warnings

import psutil

from osaurusd.inference.events import Delta
from osaurusd.inference.request import ChatPrompt, Message, SamplingParams
from osaurusd.rpc import messages
from tests.fakes import worker as fake_worker

COMMAND = (sys.executable, fake_worker.__file__)


def order(text="hello", **fields):
    """A request; the fake worker reads its wishes from the last message."""
    sampling = SamplingParams(temperature=0, top_p=1)
    prompt = ChatPrompt(messages=[Message(role="user", content=text)])
    return messages.Generate(id=0, prompt=prompt, sampling=sampling, **fields)


async def collect(events):
    return [event async for event in events]


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


async def ask(client, text="hello"):
    """The text of one answer."""
    return text_of(await collect(client.generate(order(text))))


async def ask_model(pool, record, text="hello"):
    """The text of one answer, asked for as a handler does."""
    async with pool.lease(record) as client:
        return await ask(client, text)


@contextlib.asynccontextmanager
async def begun(pool, record, text="stall"):
    """A request whose first word has come: the task that goes on reading it."""
    first = asyncio.Event()

    async def read():
        async with pool.lease(record) as client, contextlib.aclosing(client.generate(order(text))) as events:
            async for _ in events:
                first.set()

    reading = asyncio.create_task(read())
    arriving = asyncio.create_task(first.wait())
    await asyncio.wait({reading, arriving}, return_when=asyncio.FIRST_COMPLETED)
    arriving.cancel()
    if not first.is_set():
        await reading
    yield reading
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def turns(count=10):
    """Let happen what happens in that many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition, seconds=30):
    """Wait for something that nothing announces."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  see above
            await asyncio.sleep(0.001)


def block_until(condition, seconds=30):
    """The same with the whole loop standing still meanwhile, so that it finds all that came of it in one turn."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def received(record):
    """The tags of the frames that the worker of this model has got so far."""
    return (record.path / "received").read_text().split()


def is_gone(pid):
    """Whether there is no such process, not even one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def has_ended(process):
    """Whether a process runs no more, be it that somebody has waited for it or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Traces:
    """The child processes and open descriptors that there are when this is made."""

    def __init__(self):
        self._me = psutil.Process()
        self._children = set(self._me.children())
        self._descriptors = self._me.num_fds()

    def children(self):
        """Processes that came since, zombies included."""
        return [child for child in self._me.children() if child not in self._children]

    async def child(self):
        """The one process that came since, waited for."""
        await until(self.children)
        (child,) = self.children()
        return child

    async def check_none_left(self):
        """Fails unless all that came since is gone."""
        await turns()  # a transport closes in one of the loop's next turns
        try:
            assert self.children() == []
            assert self._descriptors >= self._me.num_fds()
        except AssertionError:
            with warnings.catch_warnings():  # what lies about is reported here, and is not the next test's fault
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            raise
