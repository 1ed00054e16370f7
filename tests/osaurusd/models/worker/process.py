"""Running a child process as the daemon does."""

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import osaurusd
from osaurusd.models import messages
from osaurusd.rpc import framing

ROOT = Path(osaurusd.__file__).parents[1]


@contextlib.asynccontextmanager
async def running(*arguments, module="osaurusd.models.worker", decoder=messages.DECODER, **options):
    """Start the process; yields it, the reader of its frames, and the writer that closes its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--fd", str(theirs.fileno()), *map(str, arguments)),
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            **options,
        )
    stream, writer = await framing.connect(ours.detach())
    try:
        yield process, framing.FrameReader(stream, decoder), writer
    finally:
        writer.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def run(*arguments, **options):
    """Run the process; returns all its frames and its exit code."""
    frames = []
    async with running(*arguments, **options) as (process, reader, _):
        while (frame := await reader.read()) is not None:
            frames.append(frame)
        return frames, await process.wait()
