"""Parses the tools of a chat request: which ones the model sees, and whether it must call one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.inference.request import RequiredToolCalls
from osaurusd.protocols.openai.chat_types import (
    AllowedTools,
    ChatRequest,
    Function,
    FunctionName,
    Tool,
    ToolChoice,
    ToolReference,
)

F = TypeVar("F", Function, FunctionName)

Functions = Mapping[str, Function]


@dataclass(frozen=True)
class ToolUse:
    """The tools that the model sees. With `required`, the output must consist of tool calls."""

    tools: list[neutral.Tool]
    required: RequiredToolCalls | None = None


def parse_tools(body: ChatRequest) -> ToolUse:
    """Apply `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        InvalidRequest: a tool or the choice is invalid.
        UnsupportedParameter: a tool is not a function.
    """
    functions = _parse_functions(body.tools or [])
    match body.tool_choice:
        case None | "auto":
            return ToolUse(_tools(functions.values()))
        case "none":
            return ToolUse([])
        case "required":
            return _require_call(body, _non_empty(functions))
        case ToolChoice() as choice:
            return _apply_choice(body, choice, _non_empty(functions))
        case other:
            raise InvalidRequest(
                f"`tool_choice`: must be `none`, `auto`, `required` or an object, not {other!r}", param="tool_choice"
            )


def _parse_functions(tools: list[Tool]) -> Functions:
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        function = _function(tool.type, tool.function, path)
        if function.name in functions:
            raise InvalidRequest(
                f"`{path}.function.name`: {function.name!r} is already used by another tool",
                param=f"{path}.function.name",
            )
        functions[function.name] = function
    return functions


def _non_empty(functions: Functions) -> Functions:
    if not functions:
        raise InvalidRequest("`tool_choice`: requires `tools`", param="tool_choice")
    return functions


def _apply_choice(body: ChatRequest, choice: ToolChoice, functions: Functions) -> ToolUse:
    match choice.type:
        case "function":
            name = _known_name(choice, "tool_choice", functions)
            return ToolUse(_tools(functions.values()), RequiredToolCalls(names=[name]))
        case "allowed_tools":
            return _apply_allowed(body, choice.allowed_tools, functions)
    raise UnsupportedParameter(
        f"`tool_choice.type`: must be `function` or `allowed_tools`, not {choice.type!r}", param="tool_choice.type"
    )


def _apply_allowed(body: ChatRequest, allowed: AllowedTools | None, functions: Functions) -> ToolUse:
    path = "tool_choice.allowed_tools"
    if allowed is None:
        raise InvalidRequest(f"`{path}`: is required", param=path)
    names = {_known_name(tool, f"{path}.tools[{index}]", functions) for index, tool in enumerate(allowed.tools)}
    remaining = {name: function for name, function in functions.items() if name in names}
    match allowed.mode:
        case "auto":
            return ToolUse(_tools(remaining.values()))
        case "required" if remaining:
            return _require_call(body, remaining)
        case "required":
            raise InvalidRequest(f"`{path}.tools`: must not be empty if a call is required", param=f"{path}.tools")
    raise InvalidRequest(f"`{path}.mode`: must be `auto` or `required`, not {allowed.mode!r}", param=f"{path}.mode")


def _require_call(body: ChatRequest, functions: Functions) -> ToolUse:
    required = RequiredToolCalls(names=list(functions), parallel=body.parallel_tool_calls is not False)
    return ToolUse(_tools(functions.values()), required)


def _known_name(tool: ToolReference, path: str, functions: Functions) -> str:
    name = _function(tool.type, tool.function, path).name
    if name not in functions:
        known = ", ".join(f"`{name}`" for name in functions)
        raise InvalidRequest(
            f"`{path}.function.name`: must be one of {known}, not {name!r}", param=f"{path}.function.name"
        )
    return name


def _function(type_: str, function: F | None, path: str) -> F:
    if type_ != "function":
        raise UnsupportedParameter(f"`{path}.type`: only `function` is supported, not {type_!r}", param=f"{path}.type")
    if function is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    return function


def _tools(functions: Iterable[Function]) -> list[neutral.Tool]:
    return [
        neutral.Tool(name=function.name, description=function.description, parameters=function.parameters)
        for function in functions
    ]
