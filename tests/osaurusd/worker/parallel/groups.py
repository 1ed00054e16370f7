"""Groups of real worker processes on the loopback interface, and what their daemons do: start them, pass plans on."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass, field

import msgspec

from osaurusd.inference.events import Completed, Delta
from osaurusd.inference.request import GenerationRequest
from osaurusd.rpc import framing, messages

ADDRESS = "127.0.0.1"
SECRET = "the secret of this group"
COMMAND = (sys.executable, "-P", "-m", "osaurusd.worker")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

END_SECONDS = 120
"""How long a test waits for the end of a process that must end: generous, as ranks keep all cores busy."""


@dataclass
class RankProcess:
    """A worker process, and its frames."""

    process: asyncio.subprocess.Process
    reader: framing.FrameReader
    writer: asyncio.StreamWriter
    frames: asyncio.Queue = field(default_factory=asyncio.Queue)
    plan: int = 0
    stats: messages.Stats | None = None

    def send(self, frame, blobs=()):
        self.writer.write(framing.encode_with_blobs(frame, blobs))

    async def expect(self, kind):
        frame = await self.frames.get()
        assert isinstance(frame, kind), frame
        return frame

    async def exit(self):
        """Wait for the exit; return the status and the output."""
        async with asyncio.timeout(END_SECONDS):
            output, _ = await self.process.communicate()
        return self.process.returncode, output.decode()


class Group:
    """The ranks of one model. Rank 0 gets the requests; its plans reach the others unchanged."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.plans = []
        self.sent = 0
        self.events = {}
        self._changed = asyncio.Condition()
        self.completed = {}
        self._readers = [asyncio.create_task(self._read(number, rank)) for number, rank in enumerate(ranks)]
        self._ids = iter(range(1, 10**6))

    @property
    def leader(self):
        return self.ranks[0]

    async def open(self, folder, split, *, layers=(), size=None, **options):
        """Run the first phase of a load up to the replies.

        Args:
            folder: the folder of the model, or one for each rank.
            split, layers, size: as in `RankSpec`; there may be fewer processes than ranks.
            options: those of `Load`.
        """
        folders = folder if isinstance(folder, list) else [folder] * len(self.ranks)
        for number, rank in enumerate(self.ranks):
            await rank.expect(messages.Hello)
            spec = messages.RankSpec(
                rank=number, size=size or len(self.ranks), split=split, address=ADDRESS, layers=layers
            )
            rank.send(messages.Load(path=str(folders[number]), context_length=2048, rank=spec, **options))

    async def load(self, folder, split, *, layers=(), secrets=None, **options):
        """Load a model in two phases; return the replies to Connect, by rank."""
        await self.open(folder, split, layers=layers, **options)
        ready = [await rank.frames.get() for rank in self.ranks]
        if not all(isinstance(frame, messages.RankReady) for frame in ready):
            return ready
        addresses = [f"{ADDRESS}:{frame.port}" for frame in ready]
        for number, rank in enumerate(self.ranks):
            secret = SECRET if secrets is None else secrets[number]
            rank.send(messages.Connect(addresses=addresses, secret=secret, epoch=1))
        return [await rank.frames.get() for rank in self.ranks]

    def submit(self, request):
        """Send a request to rank 0; return its id."""
        id_ = next(self._ids)
        self.events[id_], self.completed[id_] = [], asyncio.get_running_loop().create_future()
        self.leader.send(as_frame(id_, request))
        return id_

    async def result(self, id_):
        """Return all events of a request, up to Completed."""
        await self.completed[id_]
        return self.events[id_]

    async def results(self, requests):
        """Send requests together; return the events of each."""
        ids = [self.submit(request) for request in requests]
        return [await self.result(id_) for id_ in ids]

    async def planned(self, number):
        """Wait until rank 0 has sent the plan with this number."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.sent >= number)

    async def executed(self, number):
        """Wait until all followers have executed the plan with this number."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(rank.plan >= number for rank in self.ranks[1:]))

    async def close(self):
        for rank in self.ranks:
            rank.writer.close()
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                rank.process.send_signal(signal.SIGKILL)
            await rank.process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, number, rank):
        while (received := await rank.reader.receive()) is not None:
            frame = received.frame
            match frame:
                case messages.Plan():
                    self._pass_on(number, frame, received.blobs)
                case messages.Pulse():
                    rank.plan = frame.plan
                case messages.Stats():
                    rank.stats = frame
                case messages.Output() | messages.Failed():
                    self._record(frame)
                case _:
                    rank.frames.put_nowait(frame)
            async with self._changed:
                self._changed.notify_all()
        rank.frames.put_nowait(None)
        if number == 0:
            for future in self.completed.values():
                if not future.done():
                    future.set_exception(EOFError("rank 0 has exited"))

    def _pass_on(self, number, plan, blobs):
        assert number == 0, "only rank 0 plans"
        self.plans += msgspec.json.decode(plan.operations)
        self.sent = plan.number
        for rank in self.ranks[1:]:
            rank.send(plan, blobs)

    def _record(self, frame):
        if isinstance(frame, messages.Failed):
            self.completed[frame.id].set_exception(AssertionError(frame))
            return
        self.events[frame.id].append(frame.event)
        if isinstance(frame.event, Completed):
            self.completed[frame.id].set_result(None)


@contextlib.asynccontextmanager
async def processes(size):
    """Run worker processes that will form a group."""
    group = Group([await _spawn() for _ in range(size)])
    try:
        yield group
    finally:
        await group.close()


@contextlib.asynccontextmanager
async def running(folder, split, size, **options):
    """Run a group of ranks with a loaded model."""
    async with processes(size) as group:
        for reply in await group.load(folder, split, **options):
            assert isinstance(reply, messages.Loaded), reply
        yield group


def as_frame(id_, request):
    kind = messages.Generate if isinstance(request, GenerationRequest) else messages.Score
    return kind(id=id_, request=request)


def text(events):
    """Return the text of each choice."""
    texts = {}
    for event in events:
        if isinstance(event, Delta):
            texts[event.index] = texts.get(event.index, "") + event.text
    return [texts[index] for index in sorted(texts)]


async def _spawn():
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            "--fd",
            str(theirs.fileno()),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
        )
    reader, writer = await framing.connect(ours.detach())
    return RankProcess(process, framing.FrameReader(reader, messages.FROM_WORKER), writer)
