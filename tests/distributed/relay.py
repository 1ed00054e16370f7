"""A relay from a port of this machine to a port of a host, for clients that know nothing of namespaces."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.distributed.network import Node

CHUNK = 65536


@contextlib.contextmanager
def relayed(node: Node, port: int) -> Iterator[int]:
    """Relay connections to 127.0.0.1:port of the host while the block runs; yield the port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner() as runner:
        loop, stop = runner.get_loop(), asyncio.Event()
        thread = threading.Thread(target=runner.run, args=(_serve(listener, node, port, stop),))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


async def _serve(listener: socket.socket, node: Node, port: int, stop: asyncio.Event) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await _relay(reader, writer, node, port)
        writer.close()

    server = await asyncio.start_server(relay, sock=listener)
    await stop.wait()
    server.close()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: Node, port: int) -> None:
    upstream = node.open_socket()
    upstream.setblocking(False)
    await asyncio.get_running_loop().sock_connect(upstream, ("127.0.0.1", port))
    up_reader, up_writer = await asyncio.open_connection(sock=upstream)
    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_copy(reader, up_writer))
            await _copy(up_reader, writer)
            sending.cancel()
    finally:
        up_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end; a closed connection is the end, too."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
