"""Converts requests for messages and token counts to generation requests."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import limits
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.field_paths import FieldPaths, reject_unsupported
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.limits import EACH
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonSchema,
    Location,
    RequiredToolCalls,
    Tool,
)
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.anthropic.messages import Located, parse_messages
from osaurusd.protocols.anthropic.types import NO_OP_FIELDS, MessagesRequest, OutputFormat, PromptBody
from osaurusd.wire.errors import as_json

PATHS: Mapping[Location, str] = {
    limits.MODEL: "model",
    ("prompt",): "messages",
    limits.TOOLS: "tools",
    (*limits.TOOLS, EACH): "tools[{0}].input_schema",
    limits.TEMPLATE_VARIABLES: "thinking",
    ("max_tokens",): "max_tokens",
    ("stop",): "stop_sequences",
    ("sampling", EACH): "{0}",
}
"""The fields of a `PromptBody` or `MessagesRequest` by their location in a generation request."""

BODY_PATHS = FieldPaths(PATHS)
"""The fields of a request that is not converted yet."""


class Built(NamedTuple):
    """A generation request, the fields that it comes from, and its images."""

    request: GenerationRequest
    paths: FieldPaths
    images: ImageCollector


class _ToolUse(NamedTuple):
    """The tools that the model sees, and whether it must use one and may use several."""

    tools: list[Tool]
    required: RequiredToolCalls | None = None
    parallel: bool = True


def build_message(body: MessagesRequest, record: ModelRecord, defaults: RequestDefaults) -> Built:
    """Convert a request for a message.

    Raises:
        InvalidRequest: a field is invalid.
        UnsupportedParameter: the request uses an unsupported feature.
    """
    reject_unsupported(body, NO_OP_FIELDS)
    built = build_prompt(body, record, defaults)
    request = msgspec.structs.replace(
        built.request,
        sampling=defaults.sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        max_tokens=body.max_tokens,
        stop=[stop for stop in body.stop_sequences or [] if stop],
        # The field is required, so that clients send large values, and a model may have less memory than that.
        reserve_output=False,
    )
    return Built(request, built.paths, built.images)


def build_prompt(body: PromptBody, record: ModelRecord, defaults: RequestDefaults) -> Built:
    """Convert the fields that determine the prompt; raises what `build_message` raises."""
    images = ImageCollector()
    located = parse_messages(body, images)
    tool_use = _parse_tools(body, defaults)
    path, schema = _output_schema(body)
    if schema and tool_use.required:
        raise InvalidRequest(f"`{path}`: cannot be combined with a `tool_choice` that requires a tool use", param=path)
    continues_answer = located[-1].message.role == "assistant"
    if schema and continues_answer:
        # The output would conform to the schema, but not together with the text that it continues.
        raise InvalidRequest(
            f"`{path}`: cannot be combined with a last message of the role `assistant`, which the output continues",
            param=path,
        )
    request = GenerationRequest(
        prompt=ChatPrompt(
            messages=[message for message, _ in located],
            tools=tool_use.tools,
            template_variables=_template_variables(body, record),
            continues_answer=continues_answer,
        ),
        sampling=defaults.sampling(),
        # Output in a requested format is never a tool call, even if it looks like one.
        parse_tool_calls=bool(tool_use.tools) and schema is None,
        parallel_tool_calls=tool_use.parallel,
        constraint=tool_use.required if schema is None else _constraint(schema, defaults),
    )
    return Built(request, _field_paths(located, f"{path}.schema" if schema else "tool_choice"), images)


def _field_paths(located: list[Located], constraint: str) -> FieldPaths:
    messages: dict[Location, str] = {}
    for index, (_, path) in enumerate(located):
        messages[*limits.MESSAGES, index] = path
    return FieldPaths({**PATHS, **messages, ("constraint",): constraint})


def _output_schema(body: PromptBody) -> tuple[str, OutputFormat | None]:
    """Return the format of the output, and the path of its field."""
    if body.output_config is not None and body.output_config.format is not None:
        return "output_config.format", body.output_config.format
    return "output_format", body.output_format


def _constraint(format_: OutputFormat, defaults: RequestDefaults) -> JsonSchema:
    return JsonSchema(schema=format_.schema, describe=defaults.describe_schema)


def _template_variables(body: PromptBody, record: ModelRecord) -> dict[str, Any]:
    """Return the variables for the chat template: some templates read a switch, others a level."""
    if not record.capabilities.reasoning:
        return {}
    effort = None if body.output_config is None else body.output_config.effort
    level = {} if effort is None else {"reasoning_effort": effort}
    return {"enable_thinking": is_thinking(body), **level}


def is_thinking(body: PromptBody) -> bool:
    """Whether the request asks for thinking."""
    return body.thinking is not None and body.thinking.type != "disabled"


def _parse_tools(body: PromptBody, defaults: RequestDefaults) -> _ToolUse:
    tools = {tool.name: tool for tool in _tools(body)}
    choice = body.tool_choice
    if choice is None:
        return _ToolUse(list(tools.values()))
    parallel = choice.disable_parallel_tool_use is not True
    if choice.type == "none":
        return _ToolUse([])
    if choice.type == "auto":
        return _ToolUse(list(tools.values()), parallel=parallel)
    if not tools:
        raise InvalidRequest("`tool_choice`: requires `tools`", param="tool_choice")
    if choice.type == "any":
        required = RequiredToolCalls(names=list(tools), max_calls=defaults.max_forced_calls if parallel else 1)
        return _ToolUse(list(tools.values()), required, parallel)
    return _ToolUse(list(tools.values()), RequiredToolCalls(names=[_known_name(choice.name, tools)]), parallel)


def _known_name(name: str | None, tools: Mapping[str, Tool]) -> str:
    if name is None or name not in tools:
        known = ", ".join(f"`{known}`" for known in tools)
        found = "which is missing" if name is None else f"not {as_json(name[:100])}"
        raise InvalidRequest(f"`tool_choice.name`: must be one of {known}, {found}", param="tool_choice.name")
    return name


def _tools(body: PromptBody) -> list[Tool]:
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(body.tools or []):
        path = f"tools[{index}]"
        if tool.type not in (None, "custom"):
            raise UnsupportedParameter(
                f"`{path}.type`: only `custom` is supported, not {as_json(tool.type[:100])}", param=f"{path}.type"
            )
        if tool.name in tools:
            raise InvalidRequest(
                f"`{path}.name`: {as_json(tool.name[:100])} is already used by another tool", param=f"{path}.name"
            )
        tools[tool.name] = Tool(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return list(tools.values())
