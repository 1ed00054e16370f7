"""The bodies of chats and generations: requests, responses and the lines of a stream.

Unknown fields are ignored. Ollama's fields that would change the response but are not supported are declared, so that
they can be rejected.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

Duration = int | float | str
"""Seconds, or a number with a unit such as `5m`."""

NO_OP_OPTIONS: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
}
"""Unsupported options, and the values besides null that are accepted because they do not change the response."""

IGNORED_OPTIONS = (
    "f16_kv",
    "logits_all",
    "low_vram",
    "main_gpu",
    "mirostat_eta",
    "mirostat_tau",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "penalize_newline",
    "use_mlock",
    "use_mmap",
)
"""Options about how llama.cpp runs a model. `num_ctx` is one: osaurusd never truncates a prompt."""

NO_OP_FIELDS: dict[str, tuple[Any, ...]] = {
    "context": ([],),
    "template": ("",),
}
"""Unsupported fields, and the values besides null that are accepted because they do not change the response."""

IGNORED_FIELDS = ("shift", "truncate")
"""Fields for prompts that exceed the context. osaurusd rejects such prompts, and never truncates them."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`options`. A negative `num_predict` has no limit but the context, and a `seed` of -1 is random."""

    num_predict: Annotated[int, msgspec.Meta(ge=-2, le=2**53)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None

    # See NO_OP_OPTIONS.
    mirostat: Any = None
    tfs_z: Any = None
    typical_p: Any = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call; `arguments` is an object. Some clients send its JSON text."""

    name: str
    arguments: dict[str, Any] | str = {}
    index: int | UnsetType = UNSET


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    function: FunctionCall
    id: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message of a chat. `tool_name` and `tool_call_id` belong to the role `tool`."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    function: Function
    type: str = "function"


class GenerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both kinds of requests. Null means the default."""

    model: str | None = None
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: Duration | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None

    # See IGNORED_FIELDS.
    shift: Any = None
    truncate: Any = None


class ChatRequest(GenerationBody, frozen=True, kw_only=True):
    """The body of a chat. Without messages, the model is loaded, or with a `keep_alive` of 0 unloaded."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None

    @property
    def has_input(self) -> bool:
        return bool(self.messages)


class GenerateRequest(GenerationBody, frozen=True, kw_only=True):
    """The body of a generation. Without a prompt, the model is loaded, or with a `keep_alive` of 0 unloaded."""

    prompt: str | None = None
    suffix: str | None = None
    images: list[str] | None = None
    system: str | None = None
    raw: bool | None = None

    # See NO_OP_FIELDS.
    context: Any = None
    template: Any = None

    @property
    def has_input(self) -> bool:
        return bool(self.prompt or self.images)


# Responses


class Logprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Logprob, frozen=True, kw_only=True, omit_defaults=True):
    """A generated token, with the most likely tokens at its position."""

    top_logprobs: list[Logprob] = []


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens were processed, and how long that took, in nanoseconds."""

    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


class ResponseMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class _Piece(msgspec.Struct, frozen=True, kw_only=True):
    """New output. A stream has about one per token, and ends with a line that has more fields."""

    model: str
    created_at: datetime
    done: Literal[False] = False
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class ChatPiece(_Piece, frozen=True, kw_only=True):
    message: ResponseMessage


class TextPiece(_Piece, frozen=True, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET
