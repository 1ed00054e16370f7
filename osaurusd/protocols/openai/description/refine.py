"""What the request types leave open and the checks after them do not: words that are allowed, and configured limits."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from osaurusd.config import Input
from osaurusd.protocols.openai.limits import UNITS
from osaurusd.protocols.openai.schema.chat import HARMLESS
from osaurusd.protocols.openai.translate.messages import ROLES
from osaurusd.protocols.openai.translate.sampling import TOKEN_ID
from osaurusd.protocols.openai.translate.template import EFFORTS, RESERVED

Schema = dict[str, Any]


ITEMS = "items"


class Limit(NamedTuple):
    """A key of `[input]` as the JSON Schema keyword that says it, of a field of one of our types.

    `kind` is the type that the keyword is for, as a field may have several, or `ITEMS` for what an array holds. Without
    a keyword the limit is said in words only.
    """

    type: str
    field: str
    key: str
    keyword: str = ""
    kind: str = ""


_CALL = "osaurusd.protocols.openai.schema.chat.ToolCall"
_CALLED = "osaurusd.protocols.openai.schema.chat.CalledFunction"

LIMITS = (
    *(
        limit
        for body in ("ChatRequest", "CompletionRequest")
        for limit in (
            Limit(body, "model", "max_name_length", "maxLength", "string"),
            Limit(body, "n", "max_choices", "maximum", "integer"),
            Limit(body, "stop", "max_stop_length", "maxLength", "string"),
            Limit(body, "stop", "max_stop_length", "maxLength", ITEMS),
            Limit(body, "stop", "max_stop_strings", "maxItems", "array"),
            Limit(body, "logit_bias", "max_logit_bias", "maxProperties", "object"),
        )
    ),
    Limit("ChatRequest", "messages", "max_messages", "maxItems", "array"),
    Limit("ChatRequest", "top_logprobs", "max_top_logprobs", "maximum", "integer"),
    Limit("ChatRequest", "tools", "max_tools", "maxItems", "array"),
    Limit("CompletionRequest", "logprobs", "max_top_logprobs", "maximum", "integer"),
    Limit("CompletionRequest", "prompt", "max_prompts"),
    Limit("Message", "content", "max_parts", "maxItems", "array"),
    Limit("Message", "name", "max_name_length", "maxLength", "string"),
    Limit("Message", "tool_calls", "max_tool_calls", "maxItems", "array"),
    Limit("Message", "tool_call_id", "max_name_length", "maxLength", "string"),
    Limit(_CALL, "id", "max_name_length", "maxLength", "string"),
    Limit(_CALLED, "name", "max_name_length", "maxLength", "string"),
    *(
        Limit(body, field, key)
        for body, field in (
            ("Function", "parameters"),
            ("NamedSchema", "schema"),
            ("ChatRequest", "chat_template_kwargs"),
        )
        for key in ("max_schema_bytes", "max_schema_depth")
    ),
)

_FUNCTION = ["function"]
WORDS = {
    ("Message", "role"): list(ROLES),
    ("Part", "type"): ["text"],
    ("Tool", "type"): _FUNCTION,
    ("ToolName", "type"): _FUNCTION,
    (_CALL, "type"): _FUNCTION,
    ("ToolChoice", "type"): ["function", "allowed_tools"],
    ("AllowedTools", "mode"): ["auto", "required"],
    ("ResponseFormat", "type"): ["text", "json_object", "json_schema"],
    ("ChatRequest", "reasoning_effort"): list(EFFORTS),
    ("ChatRequest", "tool_choice"): ["none", "auto", "required"],
}
"""The words that a text field may hold."""


def refine(components: dict[str, Schema], limits: Input) -> None:
    """Write all of it into the schemas of our types."""
    for limit in LIMITS:
        _limit(components[limit.type]["properties"][limit.field], limit, getattr(limits, limit.key))
    for (kind, field), words in WORDS.items():
        for form in _forms(components[kind]["properties"][field], "string"):
            form["enum"] = words
    chat = components["ChatRequest"]["properties"]
    for field, harmless in HARMLESS.items():
        chat[field] = {"enum": [None, *harmless], "default": None, "description": "Not supported."}
    chat["chat_template_kwargs"]["description"] += f" Reserved names: {', '.join(sorted(RESERVED))}."
    for body in ("ChatRequest", "CompletionRequest"):
        for form in _forms(components[body]["properties"]["logit_bias"], "object"):
            form["propertyNames"] = {"pattern": f"^(?:{TOKEN_ID})$"}


def _limit(schema: Schema, limit: Limit, most: int) -> None:
    if limit.keyword:
        for form in _forms(schema, limit.kind):
            form[limit.keyword] = most
    said, before = f"At most {most} {UNITS[limit.key]} (`input.{limit.key}`).", schema.get("description", "")
    if said not in before:
        schema["description"] = f"{before} {said}".strip()


def _forms(schema: Schema, kind: str) -> Iterable[Schema]:
    """The alternatives of a field that are of this JSON type, or what its arrays hold."""
    if kind == ITEMS:
        return [form["items"] for form in _forms(schema, "array")]
    return [form for form in schema.get("anyOf", [schema]) if form.get("type") == kind]
