"""Closing connections of asyncio's streams."""

import asyncio
import contextlib


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until its socket is closed.

    A test that returns earlier may end its event loop before the connection is closed: TLS takes several messages.
    """
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
