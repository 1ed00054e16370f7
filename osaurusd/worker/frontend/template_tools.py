"""Tools in the form that chat templates expect."""

import json
from typing import Any

from osaurusd.inference.request import Tool

_SCALAR_TYPES = ("string", "number", "integer", "boolean")


def template_tool(tool: Tool) -> dict[str, Any]:
    """Build the object that chat templates expect for a tool.

    The shape is a convention of transformers:
    https://huggingface.co/docs/transformers/chat_extras#tool-use
    """
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def simple_template_tool(tool: Tool) -> dict[str, Any]:
    """Build the object of a tool for a template that cannot render its JSON schema.

    Some templates translate schemas to another notation, and reject or endlessly follow constructs that they lack.
    Parameters get a plain type here, and their complete schema becomes part of their description.
    """
    simple = template_tool(tool)
    schema = simple["function"]["parameters"]
    properties = schema.get("properties")
    required = schema.get("required")
    simple["function"] |= {
        "description": tool.description or "",
        "parameters": {
            "type": "object",
            "properties": {
                name: _simplify(value) for name, value in (properties if isinstance(properties, dict) else {}).items()
            },
            "required": required if isinstance(required, list) else [],
        },
    }
    return simple


def _simplify(schema: Any) -> dict[str, Any]:
    details = schema if isinstance(schema, dict) else {}
    kind = details.get("type")
    description = details.get("description")
    lines = [description] if isinstance(description, str) else []
    if details.keys() - {"type", "description"} or kind not in _SCALAR_TYPES:
        lines.append(f"JSON schema: {dump_json(schema)}")
    return {"type": kind if kind in _SCALAR_TYPES else "string", "description": "\n".join(lines)}


def dump_json(value: Any) -> str:
    """Return JSON for a prompt: with the characters themselves instead of escapes."""
    return json.dumps(value, ensure_ascii=False)
