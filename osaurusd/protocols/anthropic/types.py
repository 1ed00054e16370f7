"""The bodies of messages and token counts: requests, responses and the events of a stream.

Unknown fields are ignored, as clients send fields of beta versions. Those that would change the response but are not
supported are declared, so that they can be rejected.
"""

from typing import Annotated, Any, Literal

import msgspec

IGNORED_FIELDS = (
    "cache_control",
    "context_management",
    "diagnostics",
    "inference_geo",
    "metadata",
    "service_tier",
    "speed",
)
"""Fields about billing, and about how Anthropic runs a model. Prompts are always cached."""

NO_OP_FIELDS: dict[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
}
"""Unsupported fields, and the values besides null that are accepted because they do not change the response."""

Effort = Literal["low", "medium", "high", "xhigh", "max"]

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class ContentBlock(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A block of a message or of a tool's result. Which fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[ContentBlock] | None" = None
    is_error: bool | None = None
    source: Any = None
    title: str | None = None


Content = str | list[ContentBlock]


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    role: str
    content: Content


class Tool(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tool that the client runs. Those that Anthropic defines have another type, and are not supported."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model thinks before it answers, and whether the response shows it.

    `budget_tokens` has no effect.
    """

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    display: Literal["summarized", "omitted"] | None = None
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: Effort | None = None
    format: OutputFormat | None = None


class PromptBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that determine the prompt. Null means the default. `output_format` is an older name of the format."""

    messages: list[Message]
    model: str | None = None
    system: Content | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class CountTokensRequest(PromptBody, frozen=True, kw_only=True):
    """The body of a token count."""


class MessagesRequest(PromptBody, frozen=True, kw_only=True):
    """The body of a message. With a `max_tokens` of 0, the prompt is processed and cached, and there is no output."""

    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None

    # See NO_OP_FIELDS.
    container: Any = None
    mcp_servers: Any = None


# Responses


class TokenCount(msgspec.Struct, frozen=True):
    input_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. The prompt has `input_tokens` and `cache_read_input_tokens`, which came from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int = 0


class _Tagged(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of the objects that have a `type`."""


class TextBlock(_Tagged, frozen=True, tag="text"):
    text: str = ""


class ThinkingBlock(_Tagged, frozen=True, tag="thinking"):
    thinking: str = ""
    signature: str = ""


class ToolUseBlock(_Tagged, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = {}


ResponseBlock = TextBlock | ThinkingBlock | ToolUseBlock


class ResponseMessage(_Tagged, frozen=True, kw_only=True, tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ResponseBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: Usage


# Events of a stream


class TextDelta(_Tagged, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(_Tagged, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(_Tagged, frozen=True, tag="signature_delta"):
    signature: str


class InputJsonDelta(_Tagged, frozen=True, tag="input_json_delta"):
    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class MessageStart(_Tagged, frozen=True, tag="message_start"):
    message: ResponseMessage


class Ping(_Tagged, frozen=True, tag="ping"):
    """Shows that the request is being processed."""


class ContentBlockStart(_Tagged, frozen=True, tag="content_block_start"):
    index: int
    content_block: ResponseBlock


class ContentBlockDelta(_Tagged, frozen=True, tag="content_block_delta"):
    index: int
    delta: BlockDelta


class ContentBlockStop(_Tagged, frozen=True, tag="content_block_stop"):
    index: int


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Why the output ends."""

    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageDelta(_Tagged, frozen=True, tag="message_delta"):
    delta: Stop
    usage: Usage


class MessageStop(_Tagged, frozen=True, tag="message_stop"):
    """The end of a stream that succeeded."""


StreamEvent = (
    MessageStart | Ping | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop
)
