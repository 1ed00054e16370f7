"""Running the process that talks to the Hugging Face Hub."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Sequence

import msgspec

from osaurusd.downloads import messages
from osaurusd.errors import PullFailed, from_code
from osaurusd.redaction import redact
from osaurusd.rpc import job
from osaurusd.wire.pulls import PullStage

RESPONSE_SECONDS = 12.0
"""How long to wait for the hub's first response while a user waits. Without a network, name resolution can be slow.

It counts from the first frame of the process, because a process starts slowly on a busy machine.
"""

COMMAND = job.module_command("osaurusd.downloads.worker")


async def run(arguments: Sequence[str], token: str | None) -> AsyncGenerator[messages.Message]:
    """Run the process and yield its frames; closing the iterator kills the process.

    Args:
        arguments: the subcommand and its options.
        token: passed as HF_TOKEN; None to use the stored token.

    Raises:
        OsaurusError: the process reported a failure.
        JobDied: the process exited without a result.
    """
    env = dict(os.environ) if token is None else {**os.environ, "HF_TOKEN": token}
    async with contextlib.aclosing(job.run(COMMAND, arguments, messages.DECODER, env)) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Failure):
                raise from_code(frame.code, redact(frame.message))
            if isinstance(frame, messages.Progress) and frame.note:
                frame = msgspec.structs.replace(frame, note=redact(frame.note))
            yield frame


def limit_response(timeout: asyncio.Timeout, frame: messages.Message, seconds: float | None) -> None:
    """Limit the time from the first frame of a process to the first one that depends on a response of the hub.

    Args:
        timeout: the limit, which applies to the loop that receives the frames.
        frame: the frame that was received.
        seconds: the limit; None for no limit.
    """
    if not (isinstance(frame, messages.Progress) and frame.stage is PullStage.RESOLVING):
        timeout.reschedule(None)
    elif seconds is not None and timeout.when() is None:
        timeout.reschedule(asyncio.get_running_loop().time() + seconds)


async def search(query: str, task: str, author: str | None, limit: int, token: str | None) -> list[messages.HubModel]:
    """Search the hub for models for a task.

    Raises:
        OsaurusError: the search failed.
    """
    arguments = ["search", f"--query={query}", f"--task={task}", f"--limit={limit}"]
    if author is not None:
        arguments.append(f"--author={author}")
    try:
        async with asyncio.timeout(None) as timeout, contextlib.aclosing(run(arguments, token)) as frames:
            async for frame in frames:
                limit_response(timeout, frame, RESPONSE_SECONDS)
                if isinstance(frame, messages.SearchResult):
                    return frame.models
    except TimeoutError as error:
        raise PullFailed(
            f"the hub did not answer the search within {RESPONSE_SECONDS:g} s; check the network"
        ) from error
    except job.JobDied as error:
        raise PullFailed(f"the search process failed: {error}") from error
    raise PullFailed("the search process exited without a result")
