"""`POST /chat/completions`, from the body of the request to the response."""

import contextlib
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from osaurusd.conversion import convert
from osaurusd.errors import InvalidRequest
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_sse
from osaurusd.inference import limits
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.field_paths import reject_unsupported
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.limits import EACH
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    Location,
    Message,
)
from osaurusd.inference.service import Service
from osaurusd.protocols.openai import rendering
from osaurusd.protocols.openai.chat_types import NO_OP_VALUES, ChatRequest, ToolChoice
from osaurusd.protocols.openai.common import (
    COMMON_PATHS,
    ResponseHead,
    sampling_params,
    stop_paths,
    stop_strings,
    token_biases,
    token_limit,
)
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.messages import parse_messages
from osaurusd.protocols.openai.output_format import output_paths, parse_output_format
from osaurusd.protocols.openai.tools import allowed_indexes, parse_tools, schema_field
from osaurusd.wire.errors import as_json

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

CHAT_PATHS: Mapping[Location, str] = {
    **COMMON_PATHS,
    ("logprobs",): "top_logprobs",
    ("prompt",): "messages",
    limits.MESSAGES: "messages",
    limits.MESSAGE: "messages[{0}]",
    (*limits.MESSAGE, "content"): "messages[{0}].content",
    (*limits.MESSAGE, "content", EACH): "messages[{0}].content[{1}]",
    (*limits.MESSAGE, "name"): "messages[{0}].name",
    (*limits.MESSAGE, "tool_calls"): "messages[{0}].tool_calls",
    limits.TOOL_CALL: "messages[{0}].tool_calls[{1}]",
    (*limits.TOOL_CALL, "id"): "messages[{0}].tool_calls[{1}].id",
    (*limits.TOOL_CALL, "name"): "messages[{0}].tool_calls[{1}].function.name",
    (*limits.TOOL_CALL, "arguments"): "messages[{0}].tool_calls[{1}].function.arguments",
    limits.TOOL_RESULT: "messages[{0}].content",
    (*limits.TOOL_RESULT, "call_id"): "messages[{0}].tool_call_id",
    (*limits.TOOL_RESULT, "name"): "messages[{0}].name",
    limits.TOOLS: "tools",
    # Names are checked here, so it is the parameters if a worker rejects a tool.
    (*limits.TOOLS, EACH): "tools[{0}].function.parameters",
    limits.TOOL_PARAMETERS: "tools[{0}].function.parameters",
    limits.TEMPLATE_VARIABLES: "chat_template_kwargs",
    (*limits.TEMPLATE_VARIABLES, EACH): "chat_template_kwargs.{0}",
    ("constraint",): "response_format",
    limits.SCHEMA: "response_format.json_schema.schema",
}
"""The fields of a `ChatRequest` by their location in a generation request."""


class ChatCompletions:
    """Handles the endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, ChatRequest)
        paths = await convert(field_paths, body)
        with paths.named():
            record = await self._service.find(body.model)
            self._service.check_lengths({limits.MESSAGES: body.messages, limits.LOGIT_BIAS: body.logit_bias})
            images = ImageCollector()
            generation_request = await convert(build_request, body, self._service.defaults(record), images)
            head = ResponseHead.create("chatcmpl", record.name)
            stream, include_usage = body.stream, body.include_usage
            del body  # it contains the text of images
            async with contextlib.aclosing(self._service.generate(record, [generation_request], images)) as events:
                if not stream:
                    return json_response(await rendering.collect_chat(head, events))
                chunks = rendering.stream_chat(head, events, include_usage=include_usage)
                return await stream_sse(request, chunks, error_event=paths.error_event, last_event=rendering.DONE)


def build_request(body: ChatRequest, defaults: RequestDefaults, images: ImageCollector) -> GenerationRequest:
    """Convert the body to a generation request, and collect its images.

    Raises:
        InvalidRequest: a field is invalid.
        UnsupportedParameter: the request uses an unsupported feature.
    """
    reject_unsupported(body, NO_OP_VALUES)
    tool_use = parse_tools(body, defaults)
    output_format = parse_output_format(body, defaults)
    if output_format.constraint and tool_use.required:
        raise InvalidRequest(
            f"`{output_format.path}`: cannot be combined with a `tool_choice` that requires a tool call",
            param=output_format.path,
        )
    messages = parse_messages(body.messages, images)
    return GenerationRequest(
        prompt=ChatPrompt(
            messages=messages,
            tools=tool_use.tools,
            template_variables=_template_variables(body),
            continues_answer=_continues_answer(body, messages),
        ),
        sampling=sampling_params(body, defaults, token_biases(body)),
        n=body.choices,
        max_tokens=_max_tokens(body, defaults),
        stop=stop_strings(body),
        logprobs=_parse_logprobs(body),
        # Output in a requested format is never a tool call, even if it looks like one.
        parse_tool_calls=bool(tool_use.tools) and output_format.constraint is None,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        constraint=output_format.constraint or tool_use.required,
        report_progress=bool(body.stream and body.return_progress),
    )


def field_paths(body: ChatRequest) -> FieldPaths:
    """Return the paths of the body's fields, where they depend on the body under the name that it uses."""
    paths = {**_tool_paths(body), **stop_paths(body), **CHAT_PATHS}
    if body.max_completion_tokens:
        paths["max_tokens",] = "max_completion_tokens"
    if body.response_format is None:
        paths["constraint",] = "tool_choice"
    return FieldPaths({**paths, **output_paths(body)})


def _tool_paths(body: ChatRequest) -> dict[Location, str]:
    """Return the paths of the tools that the model sees, where they differ from `CHAT_PATHS`."""
    tools = body.tools or []
    indexes = allowed_indexes(body) if isinstance(body.tool_choice, ToolChoice) else range(len(tools))
    return {
        (*limits.TOOLS, visible_index, *rest): f"tools[{index}].{schema_field(tools[index])}"
        for visible_index, index in enumerate(indexes)
        if visible_index != index or tools[index].function is None
        for rest in ((), ("parameters",))
    }


def _max_tokens(body: ChatRequest, defaults: RequestDefaults) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit: int | None = getattr(body, name)
        if limit == 0:
            raise InvalidRequest(f"`{name}`: must be at least 1, or -1 for no limit", param=name)
        if limit is not None:
            return token_limit(limit)
    return defaults.max_tokens


def _parse_logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("`top_logprobs`: requires `logprobs` to be true", param="top_logprobs")
    return None


def _template_variables(body: ChatRequest) -> dict[str, Any]:
    """Return the variables for the chat template; `chat_template_kwargs` overrides `reasoning_effort`."""
    return {
        **effort_variables(body.reasoning_effort, "reasoning_effort"),
        **dict(body.chat_template_kwargs or {}),
    }


def _continues_answer(body: ChatRequest, messages: list[Message]) -> bool:
    if not body.continue_final_message:
        if body.add_generation_prompt is False:
            raise InvalidRequest(
                "`add_generation_prompt`: false requires `continue_final_message` to be true",
                param="add_generation_prompt",
            )
        return False
    path = "continue_final_message"
    if body.add_generation_prompt:
        raise InvalidRequest(f"`{path}`: cannot be combined with `add_generation_prompt`", param=path)
    if not messages[-1].can_be_continued:
        raise InvalidRequest(
            f"`{path}`: requires a last message of the role `assistant` without tool calls", param=path
        )
    return True


def effort_variables(effort: str | None, path: str) -> dict[str, Any]:
    """Return the variables for the chat template that stand for an effort, which the field at `path` has."""
    if effort is None:
        return {}
    if effort not in REASONING_EFFORTS:
        allowed = ", ".join(f"`{name}`" for name in REASONING_EFFORTS)
        raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {as_json(effort)}", param=path)
    # Some templates read a level of effort, others a switch.
    variables: dict[str, Any] = {"reasoning_effort": effort}
    return variables if effort != "none" else {**variables, "enable_thinking": False}
