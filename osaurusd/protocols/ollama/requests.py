"""Converts the bodies of chats and generations to generation requests."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import limits
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.field_paths import FieldPaths, reject_unsupported
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.limits import EACH
from osaurusd.inference.request import (
    ChatPrompt,
    ContentPart,
    GenerationRequest,
    JsonObject,
    JsonSchema,
    Location,
    Message,
    Prompt,
    SamplingParams,
    TextPart,
    TextPrompt,
    Tool,
)
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.ollama.messages import parse_images, parse_messages
from osaurusd.protocols.ollama.types import (
    NO_OP_FIELDS,
    NO_OP_OPTIONS,
    ChatRequest,
    GenerateRequest,
    GenerationBody,
    Options,
)
from osaurusd.wire.errors import as_json

THINK_LEVELS = ("low", "medium", "high", "max")

_PATHS: Mapping[Location, str] = {
    limits.MODEL: "model",
    ("max_tokens",): "options.num_predict",
    ("stop",): "options.stop",
    ("logprobs",): "top_logprobs",
    ("constraint",): "format",
    ("sampling", "repetition_penalty"): "options.repeat_penalty",
    ("sampling", EACH): "options.{0}",
}

CHAT_PATHS = FieldPaths(
    {
        **_PATHS,
        ("prompt",): "messages",
        limits.MESSAGE: "messages[{0}]",
        (*limits.MESSAGE, "content"): "messages[{0}].content",
        limits.TOOL_CALL: "messages[{0}].tool_calls[{1}].function",
        limits.TOOL_RESULT: "messages[{0}].content",
        limits.TOOLS: "tools",
        (*limits.TOOLS, EACH): "tools[{0}].function.parameters",
        limits.TEMPLATE_VARIABLES: "think",
    }
)
"""The fields of a `ChatRequest` by their location in a generation request."""

GENERATE_PATHS = FieldPaths({**_PATHS, ("prompt",): "prompt", ("prompt", "suffix"): "suffix"})
"""The fields of a `GenerateRequest` by their location in a generation request."""


def build_chat(
    body: ChatRequest, record: ModelRecord, defaults: RequestDefaults, images: ImageCollector
) -> GenerationRequest:
    """Convert a chat, and collect its images.

    Raises:
        InvalidRequest: a field is invalid.
        UnsupportedParameter: the request uses an unsupported feature.
    """
    tools = _parse_tools(body)
    messages = parse_messages(body.messages or [], images)
    prompt = ChatPrompt(
        messages=messages,
        tools=tools,
        template_variables=_think_variables(body, record),
        # As in Ollama, an answer at the end is continued.
        continues_answer=bool(messages) and messages[-1].can_be_continued and bool(messages[-1].text),
    )
    return _build(body, prompt, defaults, parse_tool_calls=bool(tools) and not body.format)


def build_generation(
    body: GenerateRequest, record: ModelRecord, defaults: RequestDefaults, images: ImageCollector
) -> GenerationRequest:
    """Convert a generation, and collect its images; raises what `build_chat` raises."""
    reject_unsupported(body, NO_OP_FIELDS)
    return _build(body, _parse_prompt(body, record, images), defaults, parse_tool_calls=False)


def _build(
    body: GenerationBody, prompt: Prompt, defaults: RequestDefaults, *, parse_tool_calls: bool
) -> GenerationRequest:
    options = body.options or Options()
    reject_unsupported(options, NO_OP_OPTIONS, "options.")
    return GenerationRequest(
        prompt=prompt,
        sampling=_sampling(options, defaults),
        max_tokens=_max_tokens(options.num_predict, defaults),
        stop=_stop_strings(options.stop),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        parse_tool_calls=parse_tool_calls,
        constraint=_parse_format(body.format),
    )


def _parse_prompt(body: GenerateRequest, record: ModelRecord, images: ImageCollector) -> Prompt:
    text = body.prompt or ""
    if body.images and (body.suffix or body.raw):
        field = "suffix" if body.suffix else "raw"
        raise InvalidRequest(f"`images`: cannot be combined with `{field}`", param="images")
    if body.suffix:
        return TextPrompt(text=text, suffix=body.suffix)
    if body.raw or not (record.capabilities.chat or body.images):
        if body.system:
            reason = "it needs a chat template, which `raw` disables" if body.raw else "the model has no chat template"
            raise InvalidRequest(f"`system`: {reason}; put the text into `prompt`", param="system")
        return TextPrompt(text=text)
    system = [Message.from_text("system", body.system)] if body.system else []
    parts: list[ContentPart] = [*parse_images(body.images, "images", images)]
    if text:
        parts.append(TextPart(text=text))
    messages = [*system, Message(role="user", content=parts)]
    return ChatPrompt(messages=messages, template_variables=_think_variables(body, record))


def _sampling(options: Options, defaults: RequestDefaults) -> SamplingParams:
    sampling = defaults.sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        seed=None if options.seed == -1 else options.seed,
    )
    if options.repeat_last_n in (None, -1) or sampling.repetition_penalty == 1:
        return sampling
    if options.repeat_last_n == 0:
        return msgspec.structs.replace(sampling, repetition_penalty=1.0)
    raise UnsupportedParameter(
        "`options.repeat_last_n`: the penalty applies to all tokens; use -1, 0 to disable it, or omit it",
        param="options.repeat_last_n",
    )


def _max_tokens(num_predict: int | None, defaults: RequestDefaults) -> int | None:
    if num_predict is None:
        return defaults.max_tokens
    if num_predict == 0:
        raise InvalidRequest(
            "`options.num_predict`: must be at least 1, or -1 for no limit", param="options.num_predict"
        )
    return num_predict if num_predict > 0 else None


def _stop_strings(stop: str | list[str] | None) -> list[str]:
    strings = [stop] if isinstance(stop, str) else stop or []
    return [string for string in strings if string]


def _parse_format(format_: str | dict[str, Any] | None) -> JsonObject | JsonSchema | None:
    if not format_:
        return None
    if format_ == "json":
        return JsonObject()
    if isinstance(format_, dict):
        return JsonSchema(schema=format_)
    raise InvalidRequest(f'`format`: must be "json" or a JSON schema, not {json.dumps(format_[:100])}', param="format")


def _think_variables(body: GenerationBody, record: ModelRecord) -> dict[str, Any]:
    """Return the variables for the chat template: some templates read a switch, others a level."""
    think = body.think
    if isinstance(think, str) and think not in THINK_LEVELS:
        levels = ", ".join(f"`{level}`" for level in THINK_LEVELS)
        raise InvalidRequest(f"`think`: must be true, false, {levels}, not {as_json(think[:100])}", param="think")
    if think and not record.capabilities.reasoning:
        raise InvalidRequest(f'`think`: model "{record.name}" does not support thinking; omit it', param="think")
    if think is None or not record.capabilities.reasoning:
        return {}
    variables: dict[str, Any] = {"enable_thinking": bool(think)}
    return variables if isinstance(think, bool) else {**variables, "reasoning_effort": think}


def _parse_tools(body: ChatRequest) -> list[Tool]:
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(body.tools or []):
        function, path = tool.function, f"tools[{index}]"
        if tool.type != "function":
            raise UnsupportedParameter(
                f"`{path}.type`: only `function` is supported, not {as_json(tool.type[:100])}", param=f"{path}.type"
            )
        if function.name in tools:
            raise InvalidRequest(
                f"`{path}.function.name`: {as_json(function.name[:100])} is already used by another tool",
                param=f"{path}.function.name",
            )
        tools[function.name] = Tool(
            name=function.name, description=function.description, parameters=function.parameters
        )
    return list(tools.values())
