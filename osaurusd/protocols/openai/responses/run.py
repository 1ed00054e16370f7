"""Runs one response: its events, and the response at the end."""

import collections
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from osaurusd.errors import ContextLengthExceeded, InvalidRequest, OsaurusError
from osaurusd.http.errors import as_osaurus_error, error_body
from osaurusd.inference.events import Completed, Delta, Event, Finished, Started
from osaurusd.inference.request import ChatPrompt, GenerationRequest
from osaurusd.inference.service import Service
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.responses.output import OutputBuilder, StreamEvent
from osaurusd.protocols.openai.responses.request import ParsedRequest
from osaurusd.protocols.openai.responses.store import StoredObject, encode_items
from osaurusd.protocols.openai.responses.types import (
    FailureCode,
    IncompleteDetails,
    Response,
    ResponseError,
    Status,
    Usage,
)
from osaurusd.wire.errors import ErrorCode

_RATE_LIMITS = (ErrorCode.QUEUE_FULL, ErrorCode.TOO_MANY_REQUESTS)

EncodedEvent = tuple[str, bytes]
"""The type of an event, and the event as JSON."""

_encode = msgspec.json.Encoder().encode


class RunOptions(msgspec.Struct, frozen=True):
    """How a response is generated.

    Attributes:
        event_fields: added to every event.
        without_output: process the prompt, so that a later request can continue it, but generate nothing.
    """

    event_fields: Mapping[str, Any] = msgspec.field(default_factory=dict)
    without_output: bool = False


DEFAULT_OPTIONS = RunOptions()


class ResponseRun:
    """One response while it is generated.

    Args:
        service: serves generation requests.
        record: the model.
        parsed: the request.
        history: the items of the conversation before the input, as JSON.
        keep: gets the response once it is final.
        options: how it is generated.

    Attributes:
        response: the response as it is now.
        input: the items of the conversation before the output, as JSON.
    """

    def __init__(
        self,
        service: Service,
        record: ModelRecord,
        parsed: ParsedRequest,
        history: Sequence[bytes],
        keep: Callable[["ResponseRun"], None],
        options: RunOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.response = parsed.response
        self.input = (*history, *encode_items(parsed.items[len(history) :]))
        self._service = service
        self._record = record
        # The encoded items are enough: they can contain images.
        self._parsed = replace(parsed, items=())
        self._keep = keep
        self._options = options
        self._paths = FieldPaths(parsed.paths)
        self._sequence_number = 0
        self._builder = OutputBuilder(
            parsed.tools.bindings,
            summarize=parsed.summarize,
            opaque_reasoning=parsed.opaque_reasoning,
            max_calls=parsed.max_calls,
        )

    @property
    def stored(self) -> StoredObject:
        """The response as it is stored."""
        output = encode_items(self.response.output)
        return StoredObject(self.response.id, _encode(self.response), self.input, output)

    async def collect(self) -> Response:
        """Return the final response.

        Raises:
            OsaurusError: it failed.
        """
        with self._paths.named():
            async with contextlib.aclosing(self._events()) as events:
                async for _ in events:
                    pass
        return self.response

    async def stream(self, *, report_all_errors: bool = False) -> AsyncGenerator[EncodedEvent]:
        """Yield the events of the response, encoded.

        Args:
            report_all_errors: report also an error that precedes the first event as an event.

        Raises:
            OsaurusError: the response failed before its first event.
        """
        try:
            with self._paths.named():
                async with contextlib.aclosing(self._events()) as events:
                    async for event in events:
                        yield self._encode(event)
        except Exception as error:  # the boundary: `as_osaurus_error` logs what is unexpected
            if not self._sequence_number and not report_all_errors:
                raise
            yield self.fail(as_osaurus_error(error))

    def fail(self, error: OsaurusError) -> EncodedEvent:
        """End the response with an error, and return its event."""
        self._end("failed", error=ResponseError(code=_failure_code(error), message=error_body(error).message))
        return self._encode(self._response_event("failed"))

    def queue(self) -> None:
        """Mark the response as waiting for its start."""
        self.response = msgspec.structs.replace(self.response, status="queued")

    def cancel(self) -> None:
        """Mark the response as cancelled."""
        self._end("cancelled")

    def error_event(self, error: OsaurusError) -> EncodedEvent:
        """Render an error outside of the response, such as a time limit."""
        body = error_body(error)
        return self._encode({"type": "error", "code": body.code, "message": body.message, "param": body.param})

    def _encode(self, event: StreamEvent) -> EncodedEvent:
        event |= {"sequence_number": self._sequence_number, **self._options.event_fields}
        self._sequence_number += 1
        return event["type"], _encode(event)

    async def _events(self) -> AsyncGenerator[StreamEvent]:
        complete = True
        async with contextlib.aclosing(self._generate()) as events:
            async for event in events:
                match event:
                    case Delta() | Finished() if self._options.without_output:
                        pass
                    case Delta():
                        for item_event in self._builder.add(event):
                            yield item_event
                    case Started():
                        for response_event in self._start():
                            yield response_event
                    case Finished():
                        complete = event.reason != "length"
                        for item_event in self._builder.finish(complete=complete):
                            yield item_event
                    case Completed():
                        self._complete(event, complete=complete)
        yield self._response_event(self.response.status)

    def _start(self) -> Iterator[StreamEvent]:
        self.response = msgspec.structs.replace(self.response, status="in_progress")
        yield self._response_event("created")
        yield self._response_event("in_progress")

    def _response_event(self, name: str) -> StreamEvent:
        return {"type": f"response.{name}", "response": self.response}

    def _complete(self, completed: Completed, *, complete: bool) -> None:
        usage = Usage.from_completed(completed, with_output=not self._options.without_output)
        if complete:
            self._end("completed", usage=usage)
        else:
            self._end("incomplete", usage=usage, incomplete_details=IncompleteDetails())

    def _end(
        self,
        status: Status,
        *,
        usage: Usage | None = None,
        incomplete_details: IncompleteDetails | None = None,
        error: ResponseError | None = None,
    ) -> None:
        # An item is still open only if the response ends early.
        collections.deque(self._builder.finish(complete=False), maxlen=0)
        self.response = msgspec.structs.replace(
            self.response,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            output=self._builder.items,
            usage=usage,
            incomplete_details=incomplete_details,
            error=error,
        )
        self._keep(self)

    async def _generate(self) -> AsyncGenerator[Event]:
        """Yield the events of the generation; with `truncation: auto`, drop turns until the prompt fits."""
        generation, images = self._parsed.generation, self._parsed.images
        if self._options.without_output:
            # The least that computes the whole prompt.
            generation = msgspec.structs.replace(generation, max_tokens=1)
        request, turns = generation, 1
        while True:
            started = False
            try:
                async with contextlib.aclosing(self._service.generate(self._record, [request], images)) as events:
                    async for event in events:
                        started = True
                        yield event
                return
            except ContextLengthExceeded:
                shorter = drop_turns(generation, turns)
                if started or self.response.truncation != "auto" or shorter is None:
                    raise
            request, turns = shorter, turns * 2


def _failure_code(error: OsaurusError) -> FailureCode:
    if error.code in _RATE_LIMITS:
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"


def drop_turns(request: GenerationRequest, count: int) -> GenerationRequest | None:
    """Drop the oldest turns of a chat, at most all but the last one.

    Returns:
        The shorter request, or None if fewer than `count` turns could be dropped already before: there is nothing
        more to drop.
    """
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return None
    starts = [index for index, message in enumerate(prompt.messages) if message.role == "user"]
    if len(starts) < 2 or count >= 2 * (len(starts) - 1):
        return None
    first, kept = starts[0], starts[min(count, len(starts) - 1)]
    system = [message for message in prompt.messages[:first] if message.role == "system"]
    shorter = msgspec.structs.replace(prompt, messages=[*system, *prompt.messages[kept:]])
    return msgspec.structs.replace(request, prompt=shorter)
