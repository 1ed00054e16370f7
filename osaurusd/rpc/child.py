"""Child processes that do blocking work for the catalog and say over a socketpair how it goes."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TypeVar

import msgspec

from osaurusd.platform import environment
from osaurusd.rpc import framing

T = TypeVar("T")

# -P: a folder called osaurusd in the working directory must not be taken for the package.
PYTHON = (sys.executable, "-P", "-m")


class ChildDied(Exception):
    """The process ended without its last word."""


async def frames(
    module: Sequence[str],
    arguments: Sequence[str],
    decoder: msgspec.json.Decoder[T],
    env: Mapping[str, str] | None = None,
) -> AsyncGenerator[T]:
    """Run a child and yield its frames; closing the iterator kills it.

    Args:
        module: the command, up to `--fd N`.
        arguments: what follows.
        decoder: reads the union of frames that it sends.
        env: its whole environment; None for what a process needs that has no business with secrets.

    Raises:
        ChildDied: it could not be started, sent garbage, or ended before the frame at which the caller stops.
    """
    process, ours = await _spawn(module, arguments, env)
    try:
        stream, writer = await framing.connect(ours.detach())
        with contextlib.closing(writer):
            reader = framing.FrameReader(stream, decoder)
            while (frame := await reader.read()) is not None:
                yield frame
            code = await process.wait()
            raise ChildDied(signal.Signals(-code).name if code < 0 else f"exit code {code}")
    except framing.FrameError as error:
        raise ChildDied(f"it sent garbage: {error}") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


async def _spawn(
    module: Sequence[str], arguments: Sequence[str], env: Mapping[str, str] | None
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                *module,
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
            raise ChildDied(f"it could not be started: {error}") from error
        except asyncio.CancelledError:
            ours.close()
            raise
        return process, ours
