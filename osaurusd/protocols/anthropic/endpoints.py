"""`POST /messages` and `POST /messages/count_tokens`, from the body of the request to the response."""

import contextlib

from aiohttp import web

from osaurusd.conversion import convert
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_sse
from osaurusd.inference.limits import MESSAGES
from osaurusd.inference.service import Service
from osaurusd.protocols.anthropic import rendering
from osaurusd.protocols.anthropic.errors import error_event
from osaurusd.protocols.anthropic.rendering import Head, ThinkingDisplay
from osaurusd.protocols.anthropic.requests import BODY_PATHS, build_message, build_prompt, is_thinking
from osaurusd.protocols.anthropic.types import CountTokensRequest, MessagesRequest, TokenCount


class Messages:
    """Handles the endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, MessagesRequest)
        with BODY_PATHS.named():
            record = await self._service.find(body.model)
            self._service.check_lengths({MESSAGES: body.messages})
        generation, paths, images = await convert(build_message, body, record, self._service.defaults(record))
        head = Head(record.name, body.max_tokens, _thinking_display(body))
        stream = body.stream
        del body  # it contains the text of images
        with paths.named():
            async with contextlib.aclosing(self._service.generate(record, [generation], images)) as events:
                if not stream:
                    return json_response(await rendering.collect(head, events))
                return await stream_sse(
                    request,
                    rendering.stream(head, events),
                    error_event=lambda error: error_event(paths.name_field(error)),
                )

    async def count_tokens(self, request: web.Request) -> web.Response:
        """Count the tokens of a prompt with the model's chat template and tokenizer, which loads the model."""
        body = await read_json(request, CountTokensRequest)
        with BODY_PATHS.named():
            record = await self._service.find(body.model)
            self._service.check_lengths({MESSAGES: body.messages})
        generation, paths, images = await convert(build_prompt, body, record, self._service.defaults(record))
        del body  # it contains the text of images
        with paths.named():
            return json_response(TokenCount(await self._service.count_prompt_tokens(record, generation, images)))


def _thinking_display(body: MessagesRequest) -> ThinkingDisplay:
    """Return what to do with thinking; clients that did not ask for it expect that the first block is text."""
    if body.thinking is None or not is_thinking(body):
        return "none"
    return "omitted" if body.thinking.display == "omitted" else "shown"
