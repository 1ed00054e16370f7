"""One client's connection: aiohttp's, with limits on time and number, and refusals in our words.

aiohttp's own parser reads, and its protocol keeps the order. What is added hangs on the methods that it has for that
(those of `asyncio.Protocol`, `handle_error`, `finish_response`), and on clocks for what it does not time: how long a
head takes to come, and an answer to be read.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.streams import StreamReader

from osaurusd.errors import InternalError, OsaurusError, RequestTimeout, TooManyConnections
from osaurusd.http import errors, metrics, refusals
from osaurusd.http.farewell import Farewell
from osaurusd.http.reader_clock import ReaderClock
from osaurusd.log import get_logger

if TYPE_CHECKING:
    from osaurusd.http.server import Server

log = get_logger(__name__)

HEAD_END = b"\r\n\r\n"


class Connection(web.RequestHandler):
    """Serves one client.

    Args:
        server: whose connection it is.
        options: aiohttp's.
    """

    def __init__(self, server: "Server", **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._limits = server.gate.limits
        self._pipe: asyncio.Transport | None = None
        self._farewell: Farewell | None = None
        self._body: StreamReader | None = None
        self._head_bytes = 0
        self._head_clock: asyncio.TimerHandle | None = None
        self._reader = ReaderClock(self._limits.reader_stall_seconds)
        self.idle_since = self._loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether it has no request, not even the beginning of one, or everything has been said on it."""
        return self._farewell is not None or (self._waits and self._head_clock is None)

    def abort(self) -> None:
        """Close at once; what has not been sent is lost."""
        if self._pipe is not None:
            self._pipe.abort()

    def make_room(self) -> None:
        """Close at once. Only for one that is idle."""
        if self._farewell is not None:
            self.abort()
        else:
            self.force_close()

    @property
    def _waits(self) -> bool:
        """Whether everything has been answered, so that something may be said without mixing it up with an answer."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = cast(asyncio.Transport, transport)
        if not self._server.let_in(self):
            # If it may not linger, it may miss the reason.
            self._refuse(
                TooManyConnections("there are as many connections as `limits.max_connections` or the system allows")
            )
            if not self._server.may_linger(self):
                self._pipe.abort()
            return
        # Then `pause_writing` tells of any bytes that the client has not taken, and draining waits for all of them.
        # Not 0, for asyncio's TLS pauses at the limit already, and none is what there mostly is.
        self._pipe.set_write_buffer_limits(high=1)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_clocks()
        self._server.let_out(self)
        self._pipe = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, a head by itself: the parser forgets what it has read if what follows in the same data is wrong."""
        end = data.find(HEAD_END) + len(HEAD_END)
        if not self._reads_body and len(HEAD_END) <= end < len(data):
            self._parse(data[:end])
            data = data[end:]
        self._parse(data)

    @property
    def _reads_body(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def _parse(self, data: bytes) -> None:
        """A head that is not complete is timed and measured, and a body that breaks is told to its reader."""
        before, body, reads_body = self._request_count, self._body, self._reads_body
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001  a boundary: what the loop would do with it is to print it
            errors.known(error)
            self.abort()
            return
        if self._request_count > before:
            self._stop_head_clock()
            last, payload = self._messages[-1]
            self._body = payload
            if body is not None and not body.is_eof() and not isinstance(last, RawRequestMessage):
                # The parser gives the body up, but not to whoever waits for the rest of it.
                body.set_exception(web.RequestPayloadError("it is not chunked as it should be"))
        elif data and not reads_body and not self._force_close:
            self._read_head(len(data))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._pipe is not None:
            self._reader.start(self._pipe)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.stop()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser could not read, or to an exception from outside the middlewares."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionResetError("there is nobody to answer, or half an answer already") from exc
        if isinstance(exc, HttpProcessingError):
            error = refusals.of_parser(exc, self.max_line_size)
            self._note(error)
        elif isinstance(exc, Exception):
            error = errors.known(exc)
        else:
            error = InternalError(message or f"the request ended with status {status}")
        answer = errors.response(error)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, or that it cannot be sent; the last one on a connection is followed by a farewell."""
        self.idle_since = self._loop.time()
        try:
            resp, reset = await super().finish_response(request, resp, start_time)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  the last boundary: what failed is what makes answers
            known = errors.known(error)
            if request.writer.output_size == 0 and self._pipe is not None:
                self._pipe.write(errors.wire(known))
            reset = True
        if reset or not resp.keep_alive:
            self._part()
        return resp, reset

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What aiohttp has caught, as one event."""
        log.error("unexpected error", what=str(args[0]) if args else "", exc_info=kw.get("exc_info"))

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - the base's signature
        if self._farewell is not None:
            self.abort()
        await super().shutdown(timeout)

    def _read_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_clock is None:
            self._head_clock = self._loop.call_later(self._limits.header_seconds, self._head_is_late)
        if self._head_bytes > self._limits.max_head_bytes and self._waits:
            self._refuse(refusals.head_too_large(self._limits.max_head_bytes))

    def _head_is_late(self) -> None:
        self._head_clock = None
        if not self._waits:
            # An earlier request is being answered; this one may be waiting for that.
            self._head_clock = self._loop.call_later(self._limits.header_seconds, self._head_is_late)
            return
        seconds = self._limits.header_seconds
        self._refuse(RequestTimeout(f"the headers were not there after `limits.header_seconds`, {seconds:g} s"))

    def _stop_head_clock(self) -> None:
        self._head_bytes = 0
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def _stop_clocks(self) -> None:
        self._stop_head_clock()
        self._reader.stop()

    def _refuse(self, error: OsaurusError) -> None:
        """Answer what is not even a request yet, and close."""
        self._note(error)
        if self._pipe is not None:
            self._pipe.write(errors.wire(error))
        self._part()

    def _part(self) -> None:
        """Close, but not in a way that costs the client what was said last."""
        if self._pipe is None or self._farewell is not None:
            return
        self._stop_clocks()
        self.transport = None
        self.force_close()
        self._farewell = Farewell(self._pipe, self)

    def _note(self, error: OsaurusError) -> None:
        status = errors.status_of(error)
        log.info("refused", code=str(error.code), status=status, reason=error.message)
        metrics.count_refusal(self._server.app, status)
