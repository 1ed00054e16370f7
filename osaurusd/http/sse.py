"""Server-Sent Events as OpenAI's clients read them."""

import contextlib
from collections.abc import AsyncGenerator

from aiohttp import hdrs, web

from osaurusd.http import errors

DONE = b"data: [DONE]\n\n"


def event(payload: bytes) -> bytes:
    """One JSON object as one event."""
    return b"data: " + payload + b"\n\n"


async def stream(request: web.Request, payloads: AsyncGenerator[bytes]) -> web.StreamResponse:
    """Send JSON objects as events, then `[DONE]`.

    The first object is awaited before the headers go out, so that an error up to there keeps its status. A later one
    is sent as a last event with `error`, and the stream ends without `[DONE]`.
    """
    async with contextlib.aclosing(payloads):
        first = await anext(payloads)
        response = web.StreamResponse(headers={hdrs.CACHE_CONTROL: "no-cache"})
        response.content_type = "text/event-stream"
        # A client that went away needs no answer; closing the payloads ends the work for it.
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await response.write(event(first))
            await _rest(response, payloads)
            await response.write_eof()
        return response


async def _rest(response: web.StreamResponse, payloads: AsyncGenerator[bytes]) -> None:
    try:
        async for payload in payloads:
            await response.write(event(payload))
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001  the headers are out: whatever happens now must be told in the stream
        await response.write(event(errors.envelope(errors.known(error))))
    else:
        await response.write(DONE)
