"""The bodies of `POST /chat/completions`: requests, responses and the chunks of a stream.

Unknown fields are ignored. Where many clients deviate from OpenAI's schema in a way that has only one meaning, the
deviation is accepted: calls without ids, tools without a nested `function`, and the like. OpenAI's fields that would
change the response but are not supported are declared, so that they can be rejected.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from osaurusd.inference.events import FinishReason
from osaurusd.protocols.openai.common import EmptyList, Logprobs, RequestBody, Tokens, Usage
from osaurusd.protocols.openai.logprobs import ChatLogprobs

# What the Model Context Protocol allows in addition to OpenAI's API: dots, slashes, colons and longer names.
NAME_PATTERN = r"^[a-zA-Z0-9_./:-]{1,128}\Z"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
# Of a tool in a chat, checked when the request is converted: the pattern would take most of the time of its decoding.
_UncheckedName = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": NAME_PATTERN})]
JsonObject = dict[str, Any] | EmptyList

NO_OP_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "web_search_options": (),
}
"""Unsupported fields, and the values besides null that are accepted because they do not change the response."""


# Requests. Messages and their parts are exempt from garbage collection: a chat has many, and they cannot form cycles.


class ImageUrl(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An image: a `data:` URL, base64 text, or the URL of an image to download."""

    url: str
    detail: str | None = None


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One part of a message's content. `refusal` and `thinking` are the texts of parts of these types.

    In the form of the Responses API, the URL of an image is `image_url`, and `detail` is beside it.
    """

    type: str
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    image_url: ImageUrl | str | None = None
    detail: str | None = None


class FunctionCallParam(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A function call of an earlier response; `arguments` is the JSON text that the model wrote, or its value."""

    name: str
    arguments: str | JsonObject | None = None


class ToolCallParam(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An earlier tool call. Without an id, results refer to it by their order."""

    id: str | None = None
    type: str | None = None
    function: FunctionCallParam | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message of a chat. Servers name the reasoning of an earlier response in several ways."""

    role: str
    content: str | list[ContentPart | str] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    thinking: Any = None
    tool_calls: list[ToolCallParam] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None


class Function(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: _UncheckedName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tool. Its fields are those of `function` or, in the flat form of other APIs, its own."""

    type: str | None = None
    function: Function | None = None
    name: _UncheckedName | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    input_schema: JsonObject | None = None


class FunctionName(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    name: str


class ToolReference(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Refers to a tool of the request by the name of its function, which the flat form has in `name`."""

    type: str | None = None
    function: FunctionName | None = None
    name: str | None = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    tools: list[ToolReference]


class ToolChoice(ToolReference, frozen=True, kw_only=True):
    """The function that the model must call, or with type `allowed_tools` the tools that it may call.

    The flat form of the latter has `mode` and `tools` here.
    """

    allowed_tools: AllowedTools | None = None
    mode: str | None = None
    tools: list[ToolReference] | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The format of the output. Other APIs have the schema in `schema`, also with type `json_object`."""

    type: str
    json_schema: JsonSchemaFormat | None = None
    schema: JsonObject | None = None


class ChatRequest(RequestBody, frozen=True, kw_only=True):
    """The body of a chat request. `continue_final_message` and `add_generation_prompt` are fields of vLLM."""

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
    chat_template_kwargs: JsonObject | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    return_progress: bool | None = None

    # See NO_OP_VALUES.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    web_search_options: Any = None


# Responses


class FunctionCall(msgspec.Struct, kw_only=True):
    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ResponseMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The output of the model. `content` is null if there are only tool calls; empty optional fields are absent."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: tuple[()] = ()
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: ResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None


# Streams


class FunctionCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call. Only the first one has id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCallDelta


class ChoiceDelta(msgspec.Struct, frozen=True, kw_only=True):
    """New output of a choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: ChoiceDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunkHead(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that all chunks of a stream have in common."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    service_tier: None = None


class PromptProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How many of the prompt's tokens have been processed, `cache` of them from the prefix cache."""

    total: int
    cache: int
    processed: int


class ChatProgressChunk(ChatChunkHead, frozen=True, kw_only=True):
    """A chunk of a stream before its first output. Only requests with `return_progress` receive any."""

    choices: tuple[()] = ()
    prompt_progress: PromptProgress


class ChatCompletionChunk(ChatChunkHead, frozen=True, kw_only=True):
    """One chunk of a streamed chat completion. With `stream_options.include_usage`, the last one has the usage."""

    choices: list[ChatChunkChoice]
    usage: Usage | None = None
