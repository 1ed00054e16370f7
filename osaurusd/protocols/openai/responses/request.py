"""Parses the body of a response request into a generation request."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from osaurusd.errors import InvalidRequest
from osaurusd.inference import limits
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.field_paths import reject_unsupported
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonObject,
    JsonSchema,
    Location,
    SamplingParams,
)
from osaurusd.protocols.openai.chat import effort_variables
from osaurusd.protocols.openai.common import sampling_params, token_limit
from osaurusd.protocols.openai.responses.items import RESPONSE_PREFIX, input_items, new_id, parse_items
from osaurusd.protocols.openai.responses.tools import ToolUse, parse_tools
from osaurusd.protocols.openai.responses.types import (
    NO_OP_VALUES,
    ConversationReference,
    Item,
    Response,
    ResponseRequest,
)
from osaurusd.wire.errors import as_json

LOGPROBS = "message.output_text.logprobs"
OPAQUE_REASONING = "reasoning.encrypted_content"
"""The values of `include` that have an effect."""

_SPARE_LEVELS = 100
_SUMMARIES = ("auto", "concise", "detailed")

_PATHS: Mapping[Location, str] = {
    limits.MODEL: "model",
    ("max_tokens",): "max_output_tokens",
    ("logprobs",): "top_logprobs",
    ("sampling", limits.EACH): "{0}",
    ("prompt",): "input",
    limits.MESSAGES: "input",
    limits.TEMPLATE_VARIABLES: "chat_template_kwargs",
    (*limits.TEMPLATE_VARIABLES, limits.EACH): "chat_template_kwargs.{0}",
    limits.SCHEMA: "text.format.schema",
}


class ParsedRequest(msgspec.Struct, frozen=True):
    """A generation request, and what its response has to look like.

    Attributes:
        generation: the generation request.
        response: the response before there is any output.
        items: the items of the conversation, oldest first.
        tools: the tools that the model sees.
        paths: the fields of the body by location.
        images: the images of the items.
        summarize: the reasoning is the summary of its item.
        opaque_reasoning: reasoning items have `encrypted_content`.
        max_calls: further tool calls are dropped; None means no limit.
    """

    generation: GenerationRequest
    response: Response
    items: Sequence[Item]
    tools: ToolUse
    paths: Mapping[Location, str]
    images: ImageCollector
    summarize: bool = False
    opaque_reasoning: bool = False
    max_calls: int | None = None


def parse_request(
    body: ResponseRequest, history: Sequence[Item], defaults: RequestDefaults, model: str
) -> ParsedRequest:
    """Convert the body to a generation request.

    Args:
        body: the request.
        history: the items of the conversation before its input.
        defaults: defaults for requests to the model.
        model: the API name of the model.

    Raises:
        InvalidRequest: a field is invalid.
        UnsupportedParameter, ImageInputUnsupported: the request uses an unsupported feature.
    """
    _check_body(body)
    items = [*history, *input_items(body.input)]
    tools = parse_tools(body, _max_forced_calls(body, defaults))
    # The items are stored, and used again with `truncation: auto`.
    images = ImageCollector(keeps_texts=True)
    prompt, paths = _parse_prompt(body, items, len(history), tools, images)
    generation = _generation(body, defaults, prompt, tools)
    return ParsedRequest(
        generation=generation,
        response=_response(body, generation.sampling, model),
        items=items,
        tools=tools,
        paths=paths,
        images=images,
        summarize=_summary(body) is not None,
        opaque_reasoning=OPAQUE_REASONING in (body.include or ()),
        max_calls=body.max_tool_calls,
    )


def _generation(
    body: ResponseRequest, defaults: RequestDefaults, prompt: ChatPrompt, tools: ToolUse
) -> GenerationRequest:
    constraint = _parse_format(body, tools, describe=defaults.describe_schema)
    return GenerationRequest(
        prompt=prompt,
        sampling=sampling_params(body, defaults),
        max_tokens=_max_tokens(body, defaults),
        logprobs=_logprobs(body),
        # Output in a requested format is never a tool call, even if it looks like one.
        parse_tool_calls=bool(tools.tools) and constraint is None,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        constraint=constraint or tools.required,
    )


def _check_body(body: ResponseRequest) -> None:
    reject_unsupported(body, NO_OP_VALUES)
    check_depth(body)
    if body.input is None and body.previous_response_id is None and body.conversation is None:
        raise InvalidRequest("`input`: is required; send a string or a list of items", param="input")


def check_depth(value: object) -> None:
    """Check that parts of a body can be encoded again as parts of a response, which adds levels around them.

    Raises:
        InvalidRequest: the body is nested too deeply.
    """
    for _ in range(_SPARE_LEVELS):
        value = [value]
    try:
        msgspec.json.encode(value)
    except RecursionError as error:
        raise InvalidRequest("the request body is nested too deeply") from error


def _max_forced_calls(body: ResponseRequest, defaults: RequestDefaults) -> int:
    if body.parallel_tool_calls is False:
        return 1
    return min(defaults.max_forced_calls, body.max_tool_calls or defaults.max_forced_calls)


def _parse_prompt(
    body: ResponseRequest, items: Sequence[Item], history_length: int, tools: ToolUse, images: ImageCollector
) -> tuple[ChatPrompt, Mapping[Location, str]]:
    new_items = len(items) - history_length
    item_paths = ["input"] if isinstance(body.input, str) else [f"input[{index}]" for index in range(new_items)]
    history_path = "previous_response_id" if body.conversation is None else "conversation"
    parsed = parse_items(items, [history_path] * history_length + item_paths, body.instructions, images)
    effort = body.reasoning.effort if body.reasoning is not None else None
    prompt = ChatPrompt(
        messages=parsed.messages,
        tools=tools.tools,
        template_variables={
            **effort_variables(effort, "reasoning.effort"),
            **dict(body.chat_template_kwargs or {}),
        },
    )
    constraint_path = "tool_choice" if tools.required is not None else "text.format"
    return prompt, {**parsed.paths, **tools.paths, ("constraint",): constraint_path, **_PATHS}


def _parse_format(body: ResponseRequest, tools: ToolUse, *, describe: bool) -> JsonObject | JsonSchema | None:
    text_format = None if body.text is None else body.text.format
    if text_format is None or text_format.type == "text":
        return None
    if tools.required is not None:
        raise InvalidRequest(
            "`text.format`: cannot be combined with a `tool_choice` that requires a tool call", param="text.format"
        )
    if text_format.type == "json_object":
        return JsonObject(describe=describe)
    if text_format.type != "json_schema":
        path = "text.format.type"
        raise InvalidRequest(
            f"`{path}`: must be `text`, `json_object` or `json_schema`, not {as_json(text_format.type)}", param=path
        )
    if text_format.schema is None:
        raise InvalidRequest("`text.format.schema`: is required", param="text.format.schema")
    return JsonSchema(schema=dict(text_format.schema), describe=describe)


def _logprobs(body: ResponseRequest) -> int | None:
    if LOGPROBS in (body.include or ()) or body.top_logprobs:
        return body.top_logprobs or 0
    return None


def _max_tokens(body: ResponseRequest, defaults: RequestDefaults) -> int | None:
    if body.max_output_tokens == 0:
        raise InvalidRequest("`max_output_tokens`: must be at least 1", param="max_output_tokens")
    return defaults.max_tokens if body.max_output_tokens is None else token_limit(body.max_output_tokens)


def _summary(body: ResponseRequest) -> str | None:
    if body.reasoning is None:
        return None
    summary = body.reasoning.summary or body.reasoning.generate_summary
    if summary in (None, "none"):
        return None
    if summary not in _SUMMARIES:
        allowed = ", ".join(f"`{name}`" for name in _SUMMARIES)
        path = "reasoning.summary"
        raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {as_json(summary)}", param=path)
    return summary


def _response(body: ResponseRequest, sampling: SamplingParams, model: str) -> Response:
    return Response(
        id=new_id(RESPONSE_PREFIX),
        created_at=int(time.time()),
        background=bool(body.background),
        conversation=None if body.conversation_id is None else ConversationReference(id=body.conversation_id),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        model=model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={"effort": None if body.reasoning is None else body.reasoning.effort, "summary": _summary(body)},
        safety_identifier=body.safety_identifier,
        store=body.store is not False,
        temperature=sampling.temperature,
        text=_text(body),
        tool_choice="auto" if body.tool_choice is None else body.tool_choice,
        tools=[_echo_tool(tool) for tool in body.tools or []],
        top_logprobs=body.top_logprobs or 0,
        top_p=sampling.top_p if body.top_p is None else body.top_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        truncation=body.truncation or "disabled",
        user=body.user,
    )


def _text(body: ResponseRequest) -> dict[str, Any]:
    text = body.text
    text_format: dict[str, Any] = {"type": "text"}
    if text is not None and text.format is not None:
        text_format = msgspec.to_builtins(text.format)
        names = ("type", "name", "description", "schema", "strict") if text.format.type == "json_schema" else ("type",)
        text_format = {name: text_format[name] for name in names}
    return {"format": text_format, "verbosity": (text.verbosity if text is not None else None) or "medium"}


def _echo_tool(tool: Item) -> Item:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}
