"""Closing connections so that what was said last is heard."""

import asyncio

LINGER_SECONDS = 2.0


class Farewell(asyncio.Protocol):
    """Takes over a connection on which everything has been said.

    To close a socket that has unread bytes in it resets the connection, and the client may lose the answer that is
    still on its way. So this end is closed for writing first, and what still comes is thrown away until the client
    closes its end too, or for `LINGER_SECONDS`.

    Args:
        transport: the connection.
        before: whose connection it was; told when it is lost.
    """

    def __init__(self, transport: asyncio.Transport, before: asyncio.Protocol) -> None:
        self._before = before
        transport.set_protocol(self)
        if not transport.is_closing():
            if transport.can_write_eof():
                transport.write_eof()
            transport.resume_reading()
        self._end = asyncio.get_running_loop().call_later(LINGER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Nobody is there to hear it."""

    def eof_received(self) -> None:
        """The client has closed its end; so the transport closes ours."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._before.connection_lost(exc)
