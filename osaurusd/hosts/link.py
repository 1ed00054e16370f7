"""Whether ring ports of two hosts can reach each other, and how fast: plain TCP between their link addresses."""

import asyncio
import contextlib
import errno
import sys
import time

LISTEN_SECONDS = 10.0
CONNECT_SECONDS = 5.0
TRANSFER_SECONDS = 2.0
TRANSFER_BYTES = 64 * 1024 * 1024

_CHUNK_BYTES = 1024 * 1024


class LinkProbe:
    """A port of this host that accepts one connection, sends it `TRANSFER_BYTES` of zeros, and closes it.

    It is closed after `LISTEN_SECONDS` at the latest.
    """

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self._timer = asyncio.get_running_loop().call_later(LISTEN_SECONDS, self.close)
        self.port: int = server.sockets[0].getsockname()[1]

    @classmethod
    async def open(cls, address: str) -> "LinkProbe":
        """Listen on a free port of an address.

        Raises:
            OSError: the address is not one of this host.
        """

        async def send(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            probe.close()
            await _send_zeros(writer)

        probe = cls(await asyncio.start_server(send, address, 0))
        return probe

    def close(self) -> None:
        """Accept no connection any more."""
        self._timer.cancel()
        self._server.close()


async def _send_zeros(writer: asyncio.StreamWriter) -> None:
    chunk = bytes(_CHUNK_BYTES)
    with contextlib.suppress(OSError):
        async with asyncio.timeout(LISTEN_SECONDS):
            for _ in range(TRANSFER_BYTES // _CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()
    writer.close()


async def receive(own_address: str, address: str, port: int) -> float:
    """Connect from one link address to another, and receive what it sends for `TRANSFER_SECONDS` at most.

    Returns:
        The bytes per second.

    Raises:
        OSError: the connection is not possible, takes longer than `CONNECT_SECONDS`, or breaks.
    """
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(
            address, port, local_addr=(own_address, 0), limit=2 * _CHUNK_BYTES
        )
    started_at = time.perf_counter()
    received = 0
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRANSFER_SECONDS):
                while chunk := await reader.read(_CHUNK_BYTES):
                    received += len(chunk)
    finally:
        writer.transport.abort()
    return received / (time.perf_counter() - started_at)


def describe(error: OSError) -> str:
    """Describe a failed connection."""
    if isinstance(error, TimeoutError):
        return "timed out"
    reason = error.strerror or str(error)
    # macOS reports a missing permission like a host that does not exist.
    if sys.platform == "darwin" and error.errno == errno.EHOSTUNREACH:
        reason += "; check that System Settings > Privacy & Security > Local Network allows osaurusd"
    return reason
