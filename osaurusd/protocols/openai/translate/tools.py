"""Which tools a chat's model is told of, and whether it must call one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.inference.request import RequiredToolCalls
from osaurusd.protocols.openai.schema.chat import (
    AllowedTools,
    ChatRequest,
    Function,
    FunctionName,
    Tool,
    ToolChoice,
    ToolName,
)

F = TypeVar("F", Function, FunctionName)


@dataclass(frozen=True)
class Tools:
    """`shown` are OpenAI's tool objects for the chat template; with `required` the answer must be calls of them."""

    shown: list[neutral.Tool]
    required: RequiredToolCalls | None = None


def tools(request: ChatRequest) -> Tools:
    """The tools that `tools`, `tool_choice` and `parallel_tool_calls` leave the model.

    Raises:
        InvalidRequest: a tool or the choice cannot be used; UnsupportedParameter: a tool that is no function.
    """
    offered = _offered(request.tools or [])
    match request.tool_choice:
        case None | "auto":
            return Tools(_shown(offered.values()))
        case "none":
            return Tools([])
        case "required":
            return _required(request, _known(offered))
        case ToolChoice() as choice:
            return _chosen(request, choice, _known(offered))
        case word:
            raise InvalidRequest(
                f"`tool_choice`: `none`, `auto`, `required` or an object, not {word!r}", param="tool_choice"
            )


def _offered(tools: list[Tool]) -> dict[str, Function]:
    offered: dict[str, Function] = {}
    for at, tool in enumerate(tools):
        path = f"tools[{at}]"
        function = _function(tool.type, tool.function, path)
        if function.name in offered:
            raise InvalidRequest(f"`{path}.function.name`: {function.name!r} is taken", param=f"{path}.function.name")
        offered[function.name] = function
    return offered


def _known(offered: dict[str, Function]) -> dict[str, Function]:
    if not offered:
        raise InvalidRequest("`tool_choice`: there are no `tools` to choose from", param="tool_choice")
    return offered


def _chosen(request: ChatRequest, choice: ToolChoice, offered: dict[str, Function]) -> Tools:
    match choice.type:
        case "function":
            name = _name(choice, "tool_choice", offered)
            return Tools(_shown(offered.values()), RequiredToolCalls(names=[name]))
        case "allowed_tools":
            return _allowed(request, choice.allowed_tools, offered)
    raise UnsupportedParameter(
        f"`tool_choice.type`: `function` or `allowed_tools`, not {choice.type!r}", param="tool_choice.type"
    )


def _allowed(request: ChatRequest, allowed: AllowedTools | None, offered: dict[str, Function]) -> Tools:
    path = "tool_choice.allowed_tools"
    if allowed is None:
        raise InvalidRequest(f"`{path}`: is required", param=path)
    names = {_name(tool, f"{path}.tools[{at}]", offered) for at, tool in enumerate(allowed.tools)}
    left = {name: function for name, function in offered.items() if name in names}
    match allowed.mode:
        case "auto":
            return Tools(_shown(left.values()))
        case "required" if left:
            return _required(request, left)
        case "required":
            raise InvalidRequest(f"`{path}.tools`: is empty, so that nothing can be called", param=f"{path}.tools")
    raise InvalidRequest(f"`{path}.mode`: `auto` or `required`, not {allowed.mode!r}", param=f"{path}.mode")


def _required(request: ChatRequest, offered: dict[str, Function]) -> Tools:
    calls = RequiredToolCalls(names=list(offered), parallel=request.parallel_tool_calls is not False)
    return Tools(_shown(offered.values()), calls)


def _name(tool: ToolName, path: str, offered: dict[str, Function]) -> str:
    name = _function(tool.type, tool.function, path).name
    if name not in offered:
        known = ", ".join(f"`{name}`" for name in offered)
        raise InvalidRequest(f"`{path}.function.name`: one of {known}, not {name!r}", param=f"{path}.function.name")
    return name


def _function(kind: str, function: F | None, path: str) -> F:
    if kind != "function":
        raise UnsupportedParameter(f"`{path}.type`: only `function`, not {kind!r}", param=f"{path}.type")
    if function is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    return function


def _shown(functions: Iterable[Function]) -> list[neutral.Tool]:
    return [neutral.Tool(name=one.name, description=one.description, parameters=one.parameters) for one in functions]
