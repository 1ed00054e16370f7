"""Parses the tools of a chat request: which ones the model sees, and whether it must call one."""

import re
from collections.abc import Iterable, Mapping

import msgspec

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.request import RequiredToolCalls
from osaurusd.protocols.openai.chat_types import (
    NAME_PATTERN,
    AllowedTools,
    ChatRequest,
    Function,
    Tool,
    ToolChoice,
    ToolReference,
)
from osaurusd.wire.errors import as_json

REQUIRED = ("required", "any")
"""The names of the mode in which a call is required; the second one is that of other APIs."""

MODES = ("none", "auto", *REQUIRED)

_is_name = re.compile(NAME_PATTERN).match

Functions = Mapping[str, Function]


class ToolUse(msgspec.Struct, frozen=True):
    """The tools that the model sees. With `required`, the output must consist of tool calls."""

    tools: list[neutral.Tool]
    required: RequiredToolCalls | None = None


def parse_tools(body: ChatRequest, defaults: RequestDefaults) -> ToolUse:
    """Apply `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        InvalidRequest: a tool or the choice is invalid.
        UnsupportedParameter: a tool is not a function.
    """
    functions = _parse_functions(body.tools or [])
    parallel = body.parallel_tool_calls is not False
    max_calls = defaults.max_forced_calls if parallel else 1
    match _normalize(body.tool_choice, functions):
        case None | "auto":
            return ToolUse(_tools(functions.values()))
        case "none":
            return ToolUse([])
        case "required" | "any":
            return _require_call(_non_empty(functions), max_calls)
        case ToolChoice() as choice:
            return _apply_choice(choice, _non_empty(functions), max_calls)
        case other:
            raise InvalidRequest(
                f"`tool_choice`: must be `none`, `auto`, `required` or an object, not {as_json(other)}",
                param="tool_choice",
            )


def allowed_indexes(body: ChatRequest) -> list[int]:
    """Return the indexes in `tools` of the tools that the model sees with a `tool_choice` that is an object."""
    tools = body.tools or []
    allowed = _allowed_tools(body.tool_choice) if isinstance(body.tool_choice, ToolChoice) else None
    if allowed is None:
        return [*range(len(tools))]
    names = {_reference_name(reference) for reference in allowed.tools}
    return [index for index, tool in enumerate(tools) if (tool.function.name if tool.function else tool.name) in names]


def schema_field(tool: Tool) -> str:
    """Return the path of a tool's schema within the tool."""
    if tool.function is not None:
        return "function.parameters"
    return "parameters" if tool.input_schema is None else "input_schema"


def _normalize(choice: str | ToolChoice | None, functions: Functions) -> str | ToolChoice | None:
    """Return the choice, as a string if it names a mode: `{"type": "auto"}`; as an object if it names a function."""
    if isinstance(choice, str) and choice not in MODES and choice in functions:
        return ToolChoice(name=choice)
    if isinstance(choice, ToolChoice) and choice.type in MODES:
        return choice.type
    return choice


def _parse_functions(tools: list[Tool]) -> Functions:
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        function = _parse_function(tool, path)
        path = f"{path}.function.name" if tool.function else f"{path}.name"
        if not _is_name(function.name):
            raise InvalidRequest(
                f"`{path}`: must be 1 to 128 letters, digits or `_./:-`, not {as_json(function.name)}", param=path
            )
        if function.name in functions:
            raise InvalidRequest(f"`{path}`: {as_json(function.name)} is already used by another tool", param=path)
        functions[function.name] = function
    return functions


def _parse_function(tool: Tool, path: str) -> Function:
    if tool.type not in ("function", None) and (tool.function is not None or tool.input_schema is None):
        _reject_type(tool.type, path)
    if tool.function is not None:
        return tool.function
    if tool.name is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    parameters = tool.parameters if tool.input_schema is None else tool.input_schema
    return Function(name=tool.name, description=tool.description, parameters=parameters)


def _reject_type(type_: str | None, path: str) -> None:
    raise UnsupportedParameter(
        f"`{path}.type`: only `function` is supported, not {as_json(type_)}", param=f"{path}.type"
    )


def _non_empty(functions: Functions) -> Functions:
    if not functions:
        raise InvalidRequest("`tool_choice`: requires `tools`", param="tool_choice")
    return functions


def _apply_choice(choice: ToolChoice, functions: Functions, max_calls: int) -> ToolUse:
    match choice.type:
        case "function" | "tool" | None:
            name = _known_name(choice, "tool_choice", functions)
            return ToolUse(_tools(functions.values()), RequiredToolCalls(names=[name]))
        case "allowed_tools":
            return _apply_allowed(_allowed_tools(choice), functions, max_calls)
    raise UnsupportedParameter(
        f"`tool_choice.type`: must be `function` or `allowed_tools`, not {as_json(choice.type)}",
        param="tool_choice.type",
    )


def _allowed_tools(choice: ToolChoice) -> AllowedTools | None:
    """Return the allowed tools; the flat form has them in the choice itself."""
    if choice.allowed_tools is None and choice.mode is not None and choice.tools is not None:
        return AllowedTools(mode=choice.mode, tools=choice.tools)
    return choice.allowed_tools


def _apply_allowed(allowed: AllowedTools | None, functions: Functions, max_calls: int) -> ToolUse:
    path = "tool_choice.allowed_tools"
    if allowed is None:
        raise InvalidRequest(f"`{path}`: is required", param=path)
    names = {_known_name(tool, f"{path}.tools[{index}]", functions) for index, tool in enumerate(allowed.tools)}
    remaining = {name: function for name, function in functions.items() if name in names}
    if allowed.mode == "auto":
        return ToolUse(_tools(remaining.values()))
    if allowed.mode not in REQUIRED:
        raise InvalidRequest(
            f"`{path}.mode`: must be `auto` or `required`, not {as_json(allowed.mode)}", param=f"{path}.mode"
        )
    if not remaining:
        raise InvalidRequest(f"`{path}.tools`: must not be empty if a call is required", param=f"{path}.tools")
    return _require_call(remaining, max_calls)


def _require_call(functions: Functions, max_calls: int) -> ToolUse:
    return ToolUse(_tools(functions.values()), RequiredToolCalls(names=list(functions), max_calls=max_calls))


def _known_name(reference: ToolReference, path: str, functions: Functions) -> str:
    if reference.type not in ("function", "tool", None):
        _reject_type(reference.type, path)
    name = _reference_name(reference)
    if name is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    if name not in functions:
        known = ", ".join(f"`{name}`" for name in functions)
        path = f"{path}.function.name" if reference.function else f"{path}.name"
        raise InvalidRequest(f"`{path}`: must be one of {known}, not {as_json(name)}", param=path)
    return name


def _reference_name(reference: ToolReference) -> str | None:
    return reference.name if reference.function is None else reference.function.name


def _tools(functions: Iterable[Function]) -> list[neutral.Tool]:
    return [
        neutral.Tool(
            name=function.name,
            description=function.description,
            parameters=None if function.parameters is None else dict(function.parameters),
        )
        for function in functions
    ]
