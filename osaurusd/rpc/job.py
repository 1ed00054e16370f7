"""One-shot child processes that do blocking work for the daemon and report over a socketpair.

This is the daemon's side; the child process calls `child.report`. End of file tells each side that the other exited.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from osaurusd.log import get_logger
from osaurusd.platform import environment
from osaurusd.rpc import framing

log = get_logger(__name__)

T = TypeVar("T")

MAX_CRASHES = 5
"""How often in a row a process that receives files may exit without having received anything."""

CRASH_BACKOFF_SECONDS = 0.5
"""The wait before a restart after the first of these exits; it grows with each."""


class JobDied(Exception):
    """The child process exited without a result, or could not be started."""


def module_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module of this package."""
    # -P: ignore a folder named osaurusd in the working directory.
    return (sys.executable, "-P", "-m", module)


async def run(
    command: Sequence[str],
    arguments: Sequence[str],
    decoder: msgspec.json.Decoder[T],
    env: Mapping[str, str] | None = None,
) -> AsyncGenerator[T]:
    """Run a child process and yield its frames; closing the iterator kills the process.

    Args:
        command: the command, which gets `--fd N` and the arguments appended.
        arguments: the arguments of this run.
        decoder: decodes the frames.
        env: the complete environment; None for a minimal one without secrets.

    Raises:
        JobDied: the process could not be started, sent invalid data, or exited before the caller stopped iterating.
    """
    process, ours = await _start(command, arguments, env)
    try:
        stream, writer = await framing.connect(ours.detach())
        with contextlib.closing(writer):
            reader = framing.FrameReader(stream, decoder)
            while (frame := await reader.read()) is not None:
                yield frame
            code = await process.wait()
            raise JobDied(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
    except framing.FrameError as error:
        raise JobDied(f"invalid frame: {error}") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


async def run_until_done(name: str, run: Callable[[], Awaitable[T]], count_done: Callable[[], int]) -> T:
    """Run a process that receives files; restart it if it crashes, as long as runs make progress.

    Args:
        name: what the process does, such as `download of org/model`.
        run: runs the process once, and returns its result.
        count_done: returns how many bytes all runs have received.

    Raises:
        JobDied: it crashed more than `MAX_CRASHES` times without progress.
    """
    crashes = 0
    while True:
        done_before = count_done()
        try:
            return await run()
        except JobDied as error:
            crashes = 0 if count_done() > done_before else crashes + 1
            log.warning("process exited unexpectedly; restarting it", process=name, reason=str(error))
            if crashes > MAX_CRASHES:
                raise JobDied(f"the process for the {name} failed {crashes} times without progress: {error}") from error
        await asyncio.sleep(crashes * CRASH_BACKOFF_SECONDS)


async def _start(
    command: Sequence[str], arguments: Sequence[str], env: Mapping[str, str] | None
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--fd",
                str(theirs.fileno()),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment.minimal() if env is None else env,
            )
        except OSError as error:
            ours.close()
            raise JobDied(f"could not start {command[0]}: {error}") from error
        except asyncio.CancelledError:
            ours.close()
            raise
        return process, ours
