"""Parses the tools of a response: which ones the model sees, under which names, and whether it must call one."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.http.json import convert_json
from osaurusd.inference import limits
from osaurusd.inference import request as neutral
from osaurusd.inference.limits import EACH
from osaurusd.inference.request import TEXT_ARGUMENT, Location, RequiredToolCalls
from osaurusd.protocols.openai.chat_types import JsonObject, Name
from osaurusd.protocols.openai.responses.types import Item, ResponseRequest
from osaurusd.protocols.openai.tools import MODES
from osaurusd.wire.errors import as_json


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None


class CustomToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    syntax: str | None = None
    definition: str | None = None


class CustomTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool whose input is text. The model sees a function with one string parameter."""

    name: Name
    description: str | None = None
    format: CustomToolFormat | None = None


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """A group of tools, whose qualified names begin with its name."""

    name: Name
    tools: list[Item] = []


class ToolReference(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    name: str | None = None
    namespace: str | None = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: str = "auto"
    tools: list[ToolReference]


class Binding(msgspec.Struct, frozen=True):
    """The tool of the request that a name which the model sees belongs to."""

    name: str
    namespace: str | None = None
    custom: bool = False


class ToolUse(msgspec.Struct, frozen=True):
    """The tools that the model sees.

    Attributes:
        bindings: the tools of the request by the name that the model sees.
        required: the output must consist of calls.
        paths: the fields of the request by location.
    """

    tools: list[neutral.Tool] = msgspec.field(default_factory=list)
    bindings: Mapping[str, Binding] = msgspec.field(default_factory=dict)
    required: RequiredToolCalls | None = None
    paths: Mapping[Location, str] = msgspec.field(default_factory=dict)


class _ParsedTool(msgspec.Struct, frozen=True):
    """A tool, its field, and the field that constrains the arguments of its calls."""

    tool: neutral.Tool
    binding: Binding
    path: str
    constraint_path: str


_Tools = Mapping[str, _ParsedTool]


def qualified_name(name: str, namespace: str | None) -> str:
    """Return the name under which the model sees a tool of a namespace."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    """Return the arguments of a call of a custom tool, as JSON."""
    return msgspec.json.encode({TEXT_ARGUMENT: text}).decode()


def custom_input(arguments: str) -> str:
    """Return the text of a call of a custom tool; incomplete arguments are returned unchanged."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return arguments
    text = value.get(TEXT_ARGUMENT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def parse_tools(body: ResponseRequest, max_calls: int) -> ToolUse:
    """Apply `tools` and `tool_choice`. Tools of types that only OpenAI's service can run are skipped.

    Args:
        body: the request.
        max_calls: the most calls of an output that must consist of calls.

    Raises:
        InvalidRequest: a tool or the choice is invalid.
        UnsupportedParameter: the choice requires a tool that is skipped.
    """
    tools: dict[str, _ParsedTool] = {}
    for parsed in _parse_list(body.tools or [], "tools", None):
        name = parsed.tool.name
        if name in tools:
            path = f"{parsed.path}.name"
            raise InvalidRequest(f"`{path}`: {as_json(name)} is already used by another tool", param=path)
        tools[name] = parsed
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") in MODES:
        choice = choice["type"]
    if isinstance(choice, dict):
        return _apply_choice(choice, tools, max_calls)
    match choice:
        case None | "auto":
            return _use(tools)
        case "none":
            return ToolUse()
        case "required" | "any":
            return _require_call(tools, max_calls)
    raise InvalidRequest(
        f"`tool_choice`: must be `none`, `auto`, `required` or an object, not {as_json(choice)}", param="tool_choice"
    )


def _parse_list(tools: list[Item], path: str, namespace: str | None) -> Iterable[_ParsedTool]:
    for index, tool in enumerate(tools):
        yield from _parse_tool(tool, f"{path}[{index}]", namespace)


def _parse_tool(tool: Item, path: str, namespace: str | None) -> Iterable[_ParsedTool]:
    match tool.get("type"):
        case "function":
            # Some clients nest the function as chat completions do.
            nested = tool.get("function")
            function_path = f"{path}.function" if isinstance(nested, dict) else path
            function = convert_json(nested if isinstance(nested, dict) else tool, FunctionTool, function_path)
            parameters = None if function.parameters is None else dict(function.parameters)
            name = qualified_name(function.name, namespace)
            parsed = neutral.Tool(name=name, description=function.description, parameters=parameters)
            binding = Binding(function.name, namespace)
            yield _ParsedTool(parsed, binding, function_path, f"{function_path}.parameters")
        case "custom":
            custom = convert_json(tool, CustomTool, path)
            parsed = _custom_tool(custom, qualified_name(custom.name, namespace), path)
            yield _ParsedTool(parsed, Binding(custom.name, namespace, custom=True), path, f"{path}.format.definition")
        case "namespace" if namespace is None:
            group = convert_json(tool, Namespace, path)
            yield from _parse_list(group.tools, f"{path}.tools", group.name)
        case str():
            return
        case other:
            raise InvalidRequest(f"`{path}.type`: must be a string, not {as_json(other)}", param=f"{path}.type")


def _custom_tool(custom: CustomTool, name: str, path: str) -> neutral.Tool:
    """Build the function that the model sees instead of a custom tool."""
    text: dict[str, Any] = {"type": "string"}
    grammar = None
    if custom.format is not None and custom.format.type == "grammar":
        syntax, definition = custom.format.syntax, custom.format.definition
        if not definition:
            raise InvalidRequest(f"`{path}.format.definition`: is required", param=f"{path}.format.definition")
        match syntax:
            case "regex":
                text["pattern"] = f"^(?:{definition})$"
            case "lark":
                grammar = definition
            case _:
                param = f"{path}.format.syntax"
                raise InvalidRequest(f"`{param}`: must be `lark` or `regex`, not {as_json(syntax)}", param=param)
    elif custom.format is not None and custom.format.type != "text":
        param = f"{path}.format.type"
        raise InvalidRequest(f"`{param}`: must be `text` or `grammar`, not {as_json(custom.format.type)}", param=param)
    parameters = {
        "type": "object",
        "properties": {TEXT_ARGUMENT: text},
        "required": [TEXT_ARGUMENT],
        "additionalProperties": False,
    }
    return neutral.Tool(name=name, description=_describe(custom), parameters=parameters, grammar=grammar)


def _describe(custom: CustomTool) -> str | None:
    """Return the description of a custom tool with its grammar, which is only enforced if a call is required."""
    if custom.format is None or not custom.format.definition:
        return custom.description
    grammar = f"The input follows this {custom.format.syntax or ''} grammar:\n{custom.format.definition}"
    return f"{custom.description}\n\n{grammar}" if custom.description else grammar


def _apply_choice(choice: Item, tools: _Tools, max_calls: int) -> ToolUse:
    match choice.get("type"):
        case "function" | "custom" | None:
            name = _known_name(convert_json(choice, ToolReference, "tool_choice"), "tool_choice", tools)
            return _use(tools, RequiredToolCalls(names=[name]))
        case "allowed_tools":
            return _apply_allowed(convert_json(choice, AllowedTools, "tool_choice"), tools, max_calls)
    raise UnsupportedParameter(
        f"`tool_choice.type`: must be `function`, `custom` or `allowed_tools`, not {as_json(choice['type'])}",
        param="tool_choice.type",
    )


def _apply_allowed(allowed: AllowedTools, tools: _Tools, max_calls: int) -> ToolUse:
    names = {
        _known_name(reference, f"tool_choice.tools[{index}]", tools)
        for index, reference in enumerate(allowed.tools)
        if reference.type in ("function", "custom")
    }
    remaining = {name: tool for name, tool in tools.items() if name in names}
    match allowed.mode:
        case "auto":
            return _use(remaining)
        case "required":
            return _require_call(remaining, max_calls)
    raise InvalidRequest(
        f"`tool_choice.mode`: must be `auto` or `required`, not {as_json(allowed.mode)}", param="tool_choice.mode"
    )


def _require_call(tools: _Tools, max_calls: int) -> ToolUse:
    if not tools:
        raise InvalidRequest(
            "`tool_choice`: requires `tools` of the types `function`, `custom` or `namespace`", param="tool_choice"
        )
    return _use(tools, RequiredToolCalls(names=list(tools), max_calls=max_calls))


def _known_name(reference: ToolReference, path: str, tools: _Tools) -> str:
    if reference.name is None:
        raise InvalidRequest(f"`{path}.name`: is required", param=f"{path}.name")
    name = qualified_name(reference.name, reference.namespace)
    if name in tools:
        return name
    matches = [known for known, parsed in tools.items() if parsed.binding.name == name]
    if len(matches) == 1 and reference.namespace is None:
        return matches[0]
    known = ", ".join(f"`{each}`" for each in tools) or "the names in `tools`"
    raise InvalidRequest(f"`{path}.name`: must be one of {known}, not {as_json(name)}", param=f"{path}.name")


def _use(tools: _Tools, required: RequiredToolCalls | None = None) -> ToolUse:
    paths: dict[Location, str] = {limits.TOOLS: "tools"}
    for index, parsed in enumerate(tools.values()):
        # Names are checked here, so a worker only rejects what constrains the arguments.
        paths[*limits.TOOLS, index] = parsed.constraint_path
    paths[*limits.TOOLS, EACH] = "tools"
    return ToolUse(
        tools=[parsed.tool for parsed in tools.values()],
        bindings={name: parsed.binding for name, parsed in tools.items()},
        required=required,
        paths=paths,
    )
