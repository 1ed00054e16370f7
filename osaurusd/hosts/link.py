"""Whether ring ports of two hosts can reach each other: plain TCP connections between their link addresses."""

import asyncio

LISTEN_SECONDS = 10.0
CONNECT_SECONDS = 5.0


async def accept_once(address: str) -> int:
    """Listen on a free port of an address until a connection was made, for `LISTEN_SECONDS`, and return the port.

    Raises:
        OSError: the address is not one of this host.
    """
    server: asyncio.Server | None = None

    def close() -> None:
        assert server is not None
        server.close()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()
            close()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Accepted, address, 0)
    loop.call_later(LISTEN_SECONDS, close)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def connect(own_address: str, address: str, port: int) -> None:
    """Connect from one link address to another.

    Raises:
        OSError: the connection is not possible, or takes longer than `CONNECT_SECONDS`.
    """
    async with asyncio.timeout(CONNECT_SECONDS):
        _, writer = await asyncio.open_connection(address, port, local_addr=(own_address, 0))
    writer.close()


def describe(error: OSError) -> str:
    """Describe a failed connection."""
    return "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
