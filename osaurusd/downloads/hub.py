"""The process that asks the hub: what it is started with, and its failures as ours."""

import contextlib
import os
from collections.abc import AsyncGenerator, Sequence

import msgspec

from osaurusd.errors import PullFailed, from_code
from osaurusd.redaction import redacted
from osaurusd.rpc import child, messages

HUB_COMMAND = (*child.PYTHON, "osaurusd.downloads.worker")


async def run(arguments: Sequence[str], token: str | None) -> AsyncGenerator[messages.FromHub]:
    """Run it and yield its frames; closing the iterator kills it.

    Args:
        arguments: the command and what it takes.
        token: handed over in its environment, where the hub's client looks; None for the stored one.

    Raises:
        OsaurusError: it could not do what was asked, for a reason with a code.
        child.ChildDied: it died.
    """
    env = dict(os.environ) if token is None else {**os.environ, "HF_TOKEN": token}
    async with contextlib.aclosing(child.frames(HUB_COMMAND, arguments, messages.FROM_HUB, env)) as frames:
        async for frame in frames:
            if isinstance(frame, messages.HubFailure):
                raise from_code(frame.code, redacted(frame.message))
            if isinstance(frame, messages.Pulling) and frame.note:
                frame = msgspec.structs.replace(frame, note=redacted(frame.note))
            yield frame


async def search(words: str, author: str | None, limit: int, token: str | None) -> list[messages.HubModel]:
    """MLX models on the hub that go by these words.

    Raises:
        OsaurusError: the hub does not say.
    """
    arguments = ["search", f"--words={words}", f"--limit={limit}"]
    if author is not None:
        arguments.append(f"--author={author}")
    try:
        async with contextlib.aclosing(run(arguments, token)) as frames:
            async for frame in frames:
                if isinstance(frame, messages.HubModels):
                    return frame.models
    except child.ChildDied as error:
        raise PullFailed(f"the process that asks the hub died ({error})") from error
    raise PullFailed("the process that asks the hub had nothing to say")
