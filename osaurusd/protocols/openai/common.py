"""What chat completions and legacy completions share: request fields, sampling parameters, and token usage."""

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from osaurusd.errors import InvalidRequest
from osaurusd.inference import events as neutral
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.limits import CHOICES, EACH, LOGIT_BIAS, MODEL, SCHEMA
from osaurusd.inference.request import Location, SamplingParams
from osaurusd.wire.errors import as_json

MAX_TOKEN_ID = 2**31 - 1

# Larger than any context. Numbers up to here are exact in every JSON parser.
MAX_TOKENS = 2**53

TOKEN_ID = r"0|[1-9][0-9]{0,9}"
_TOKEN_ID = re.compile(TOKEN_ID)

Choices = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TopK = Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)]
Logprobs = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tokens = Annotated[int, Meta(ge=-1, le=MAX_TOKENS)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
NO_LIMIT = -1
"""A number of tokens that means no limit."""
RANDOM_SEED = -1
"""Other servers choose a random seed for this one, and clients rely on that."""

# PHP and Lua write an empty object as an empty list.
EmptyList = Annotated[list[Any], Meta(max_length=0)]

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of every endpoint that generates text. Null means the default.

    A `top_k` of 0 or -1 and a `min_p` of 0 disable the filter.
    """

    seed: Seed | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None


class RequestBody(SamplingFields, frozen=True, kw_only=True):
    """Fields of both kinds of completions. Null means the default.

    The keys of `logit_bias` are token ids. Empty stop strings are ignored. The fields from `guided_json` on are those
    of other servers for structured output.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | EmptyList | None = None
    n: Choices | None = None
    stop: str | list[str | None] | None = None
    logit_bias: dict[str, Bias] | EmptyList | None = None
    guided_json: Any = None
    guided_choice: Any = None
    structured_outputs: Any = None
    json_schema: Any = None
    format: Any = None

    # See `output_format.UNSUPPORTED`.
    ebnf: Any = None
    grammar: Any = None
    guided_grammar: Any = None
    guided_regex: Any = None
    regex: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return isinstance(self.stream_options, StreamOptions) and bool(self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        return self.n or 1


COMMON_PATHS: Mapping[Location, str] = {
    MODEL: "model",
    ("n",): "n",
    ("max_tokens",): "max_tokens",
    ("stop",): "stop",
    ("stop", EACH): "stop[{0}]",
    LOGIT_BIAS: "logit_bias",
    ("sampling", EACH): "{0}",
    SCHEMA: "guided_json",
    CHOICES: "guided_choice",
}
"""The fields of `RequestBody` by their location in a generation request."""


def token_limit(number: int | None) -> int | None:
    """Convert a number of tokens; None means no limit."""
    return None if number == NO_LIMIT else number


def sampling_params(
    body: SamplingFields, defaults: RequestDefaults, logit_bias: Iterable[tuple[int, float]] = ()
) -> SamplingParams:
    """Combine the sampling parameters of a request with the defaults."""
    return defaults.sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=list(logit_bias),
        seed=None if body.seed == RANDOM_SEED else body.seed,
    )


def token_biases(body: RequestBody) -> list[tuple[int, float]]:
    """Return the entries of `logit_bias`.

    Raises:
        InvalidRequest: a key is not a token id.
    """
    entries = body.logit_bias.items() if isinstance(body.logit_bias, dict) else ()
    return [(_token_id(key), bias) for key, bias in entries]


def stop_strings(body: RequestBody) -> list[str]:
    """Return the stop strings without empty ones, which clients send for an empty text field."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return [text for text in stop if text]


def stop_paths(body: RequestBody) -> dict[Location, str]:
    """Return the paths of the stop strings: a single one has no index, and empty ones are skipped."""
    if isinstance(body.stop, str):
        return {("stop", 0): "stop"}
    indexes = [index for index, text in enumerate(body.stop or []) if text]
    return {("stop", number): f"stop[{index}]" for number, index in enumerate(indexes) if number != index}


def _token_id(key: str) -> int:
    if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_TOKEN_ID:
        raise InvalidRequest(
            f"`logit_bias`: keys must be token ids such as `50256`, not {as_json(key)}", param="logit_bias"
        )
    return int(key)


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the prompt, and of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def from_completed(cls, completed: neutral.Completed) -> "Usage":
        usage = completed.usage
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        )


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies a response: `created` is in Unix seconds, `model` the API name."""

    id: str
    created: int
    model: str

    @classmethod
    def create(cls, prefix: str, model: str) -> "ResponseHead":
        """Create a head with a new id that starts with `prefix`."""
        return cls(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model)

    def fields(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)
