"""Long work told as JSON lines."""

import contextlib
from collections.abc import AsyncGenerator

import msgspec
from aiohttp import web


async def stream(request: web.Request, events: AsyncGenerator[msgspec.Struct]) -> web.StreamResponse:
    """Send events, a line each; closes them if the client goes away.

    The first one is awaited before the headers go out, so that what is refused at once has its true status.
    """
    async with contextlib.aclosing(events):
        first = await anext(events, None)
        response = web.StreamResponse()
        response.content_type = "application/jsonl"
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            if first is not None:
                await response.write(_line(first))
            async for event in events:
                await response.write(_line(event))
            await response.write_eof()
        return response


def _line(event: msgspec.Struct) -> bytes:
    return msgspec.json.encode(event) + b"\n"
