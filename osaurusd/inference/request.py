"""Generation requests, independent of the client's protocol.

Protocols parse their requests into these types; the worker consumes them. Nothing here names a field of a protocol.
"""

from typing import Any, Literal

import msgspec

Location = tuple[str | int, ...]
"""A position in a `GenerationRequest`, such as `("prompt", "messages", 2)` or `("sampling", "logit_bias")`.

Errors carry one; each protocol maps it to the path of its own field.
"""

Role = Literal["system", "user", "assistant", "tool"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything a request consists of.

    Long chats have many parts. Those are exempt from garbage collection (`gc=False`), as they cannot form cycles.
    """


class TextPart(_Part, frozen=True, tag="text", gc=False):
    text: str


Detail = Literal["auto", "low", "high"]
"""How closely a model looks at an image: in how many tokens it sees it."""


class ImagePart(_Part, frozen=True, tag="image"):
    """An encoded image. `blob` is the index of its bytes among the blobs of the frame that carries the request."""

    blob: int
    media_type: str
    detail: Detail = "auto"


class AudioPart(_Part, frozen=True, tag="audio"):
    """Encoded audio. `blob` is the index of its bytes among the blobs of the frame that carries the request."""

    blob: int
    media_type: str


class ToolResultPart(_Part, frozen=True, tag="tool_result", gc=False):
    """The result of an earlier tool call; `name` is the called function's name if known."""

    call_id: str
    content: list[TextPart | ImagePart]
    name: str | None = None
    is_error: bool = False

    @property
    def text(self) -> str:
        """The concatenated text parts."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


ContentPart = TextPart | ImagePart | AudioPart | ToolResultPart


class ToolCall(_Part, frozen=True, gc=False):
    """A tool call of an earlier assistant message; `arguments` is the JSON text that the model wrote."""

    id: str
    name: str
    arguments: str


class Message(_Part, frozen=True, gc=False):
    """One message of a chat. A `tool` message holds `ToolResultPart`s only."""

    role: Role
    content: list[ContentPart] = []
    name: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []

    @classmethod
    def from_text(cls, role: Role, text: str, **fields: Any) -> "Message":
        """Build a message whose content is one text part, or empty if `text` is."""
        return cls(role=role, content=[TextPart(text=text)] if text else [], **fields)

    @property
    def text(self) -> str:
        """The concatenated text parts, including those of tool results."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart | ToolResultPart))

    @property
    def tool_results(self) -> list[ToolResultPart]:
        if self.role != "tool":
            return []
        return [part for part in self.content if isinstance(part, ToolResultPart)]

    @property
    def can_be_continued(self) -> bool:
        """Whether the message is an answer that the model can continue."""
        return self.role == "assistant" and not self.tool_calls


TEXT_ARGUMENT = "input"


class Tool(_Part, frozen=True):
    """A function that the model may call.

    Attributes:
        parameters: the JSON schema of its arguments.
        grammar: a Lark grammar of its only argument, which is text and is called `TEXT_ARGUMENT`.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    grammar: str | None = None


class ChatPrompt(_Part, frozen=True, tag="chat"):
    """Messages for the model's chat template; `template_variables` are passed to the template unchanged.

    With `continues_answer`, the output continues the last message, which is an assistant's without tool calls.
    """

    messages: list[Message]
    tools: list[Tool] = []
    template_variables: dict[str, Any] = {}
    continues_answer: bool = False


class TextPrompt(_Part, frozen=True, tag="text"):
    """Raw text to continue. With `suffix`, the model fills in the gap between `text` and `suffix`."""

    text: str
    suffix: str | None = None


class TokenPrompt(_Part, frozen=True, tag="tokens"):
    """Token ids to continue."""

    tokens: list[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class JsonObject(_Part, frozen=True, tag="json_object"):
    """The output must be one JSON object. With `describe`, a chat's prompt states that unless the messages do."""

    describe: bool = False


class JsonSchema(_Part, frozen=True, tag="json_schema"):
    """The output must be JSON that conforms to `schema`.

    With `describe`, a chat's prompt contains the schema unless the messages do.
    """

    schema: dict[str, Any]
    describe: bool = False


class TextChoice(_Part, frozen=True, tag="choice"):
    """The output must be one of `choices`. With `describe`, a chat's prompt lists them unless the messages do."""

    choices: list[str]
    describe: bool = False


class RequiredToolCalls(_Part, frozen=True, tag="tool_calls"):
    """The output must be calls of the named tools, all of them different: at least one and at most `max_calls`."""

    names: list[str]
    max_calls: int = 1


OutputConstraint = JsonObject | JsonSchema | TextChoice | RequiredToolCalls


class SamplingParams(_Part, frozen=True):
    """How tokens are sampled; defaults of model and configuration are already applied.

    `top_k` 0 and `min_p` 0 disable the filter. `repetition_penalty` applies to prompt and output tokens, the other two
    penalties to output tokens. `logit_bias` lists pairs of token id and bias.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: list[tuple[int, float]] = []
    seed: int | None = None


class GenerationRequest(_Part, frozen=True):
    """A prompt, and how to continue it `n` times.

    Attributes:
        max_tokens: output tokens per choice; None means up to the end of the context. 0 is useful only with `echo`.
        logprobs: how many alternatives to report with each sampled token; None disables log-probabilities.
        echo: return the prompt as the beginning of each choice, with log-probabilities if `logprobs` is set.
        parse_tool_calls: report tool calls as such; False leaves them in the text.
        parallel_tool_calls: report every tool call of a choice; False reports the first one only.
        report_progress: report how much of the prompt has been processed.
        reserve_output: reserve memory for all `max_tokens` at the start, or reject the request. False reserves it as
            the output grows, and lowers `max_tokens` to what fits.
        count_only: tokenize the prompt and end: there is a `Started` and an empty `Completed`, but no choice.
    """

    prompt: Prompt
    sampling: SamplingParams
    n: int = 1
    max_tokens: int | None = None
    stop: list[str] = []
    logprobs: int | None = None
    echo: bool = False
    parse_tool_calls: bool = True
    parallel_tool_calls: bool = True
    constraint: OutputConstraint | None = None
    report_progress: bool = False
    reserve_output: bool = True
    count_only: bool = False


class Continuation(_Part, frozen=True, gc=False):
    """Text that continues a prompt, and the texts that may follow it, which are compared.

    Each candidate counts up to the token that tells it apart from the others. None may begin with another one.
    """

    text: str
    candidates: list[str]


class ScoringRequest(_Part, frozen=True):
    """A prompt with several continuations. The result is the log-probability of every candidate after each of them.

    Attributes:
        prompt: what the continuations share. It is processed once.
        continuations: each is appended to the prompt: to its text, or to the last message of a chat, whose candidates
            are the beginning of the answer.
        ending: text between each continuation of a text prompt and the candidates.
        truncate: cut continuations that exceed the context instead of rejecting them.
    """

    prompt: ChatPrompt | TextPrompt
    continuations: list[Continuation]
    ending: str = ""
    truncate: bool = False
