"""The bodies of the Responses API.

Tools and input items are objects of many kinds, most of which only OpenAI's own service knows. They stay as the client
sent them, are returned that way, and are decoded one by one into the types in `items.py` and `tools.py`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from osaurusd.inference import events as neutral
from osaurusd.protocols.openai.chat_types import JsonObject
from osaurusd.protocols.openai.common import Logprobs, SamplingFields, Tokens

Item = dict[str, Any]
"""An input or output item."""

Metadata = dict[str, str]
"""What clients attach to an object."""

NO_OP_VALUES: dict[str, tuple[Any, ...]] = {
    "background_options": ({},),
    "moderation": (),
    "prompt": (),
}
"""Unsupported fields, and the values besides null that are accepted because they do not change the response."""

IGNORED_FIELDS = (
    "context_management",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "stream_options",
    "user",
)
"""Fields without an effect. Some of them are part of the response."""


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How much the model reasons, and whether the response has its reasoning as a summary."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The format of the output text."""

    type: str = "text"
    name: str | None = None
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class ConversationReference(msgspec.Struct, frozen=True, kw_only=True):
    id: str


class PromptCacheOptions(msgspec.Struct, frozen=True, kw_only=True):
    """With `prewarm`, the prompt is processed and cached, and there is no output. Prompts are always cached."""

    prewarm: bool | None = None


class ResponseRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of `POST /responses` and `POST /responses/input_tokens`. Null means the default."""

    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationReference | None = None
    tools: list[Item] | None = None
    tool_choice: str | Item | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: JsonObject | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    metadata: Metadata | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    top_logprobs: Logprobs | None = None

    # See IGNORED_FIELDS.
    context_management: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Any = None
    safety_identifier: str | None = None
    service_tier: Any = None
    stream_options: Any = None
    user: str | None = None

    # See NO_OP_VALUES.
    background_options: Any = None
    moderation: Any = None
    prompt: Any = None

    @property
    def conversation_id(self) -> str | None:
        if isinstance(self.conversation, ConversationReference):
            return self.conversation.id
        return self.conversation

    @property
    def without_output(self) -> bool:
        """Whether only the prompt is processed, so that the next response starts sooner."""
        return self.prompt_cache_options is not None and self.prompt_cache_options.prewarm is True


class CreateEvent(ResponseRequest, frozen=True, kw_only=True):
    """A message of the client over a WebSocket.

    Attributes:
        stream_id: the lane of the response: those of one lane are generated one after another.
        generate: false is another form of `prewarm`.
    """

    type: str
    stream_id: str | None = None
    generate: bool | None = None

    @property
    def without_output(self) -> bool:
        """Whether only the prompt is processed, so that the next response starts sooner."""
        return self.generate is False or super().without_output


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the prompt and of the output."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def from_completed(cls, completed: neutral.Completed, *, with_output: bool = True) -> "Usage":
        usage = completed.usage
        output_tokens = usage.completion_tokens if with_output else 0
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
            output_tokens=output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens if with_output else 0),
            total_tokens=usage.prompt_tokens + output_tokens,
        )


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


FailureCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response failed. The codes are OpenAI's."""

    code: FailureCode
    message: str


Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response. Every key of OpenAI's schema is present, null if it has no value."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool
    conversation: ConversationReference | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Metadata
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Item
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: Item
    tool_choice: str | Item
    tools: list[Item]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: Literal["auto", "disabled"]
    usage: Usage | None = None
    user: str | None


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /responses/input_tokens`."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class DeletedResponse(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class CreateConversation(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /conversations`."""

    items: list[Item] | None = None
    metadata: Metadata | None = None


class UpdateConversation(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /conversations/{conversation}`. The metadata replaces the present one."""

    metadata: Metadata | None


class CreateItems(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /conversations/{conversation}/items`."""

    items: list[Item]


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, without its items."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: Metadata


class DeletedConversation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of items."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
