"""The body of `POST /chat/completions`. Fields that are not OpenAI's are ignored, but for those that are named here."""

from typing import Annotated, Any

import msgspec

from osaurusd.protocols.openai.schema.base import MAX_TOKENS, Logprobs, Request

Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]

HARMLESS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's that are refused by name rather than silently ignored, unless null or one of these values, which
ask for nothing beyond what happens anyway."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What an earlier answer called; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function"
    function: CalledFunction | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a chat."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    function: Function | None = None


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class ToolName(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of the request, by the name of its function."""

    type: str
    function: FunctionName | None = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    tools: list[ToolName]


class ToolChoice(ToolName, frozen=True, kw_only=True):
    """A function that must be called, or (type `allowed_tools`) the tools that may be."""

    allowed_tools: AllowedTools | None = None


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True):
    name: Name
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    json_schema: NamedSchema | None = None


class ChatRequest(Request, frozen=True, kw_only=True):
    """The body; for the fields of `HARMLESS` see there."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None
