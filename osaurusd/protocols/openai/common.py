"""What chat completions and legacy completions share: request fields, sampling parameters, and token usage."""

import re
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from osaurusd.errors import InvalidRequest
from osaurusd.inference import events as neutral
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.limits import EACH, MODEL
from osaurusd.inference.request import Location, SamplingParams

MAX_TOKEN_ID = 2**31 - 1

# Larger than any context. Numbers up to here are exact in every JSON parser.
MAX_TOKENS = 2**53

TOKEN_ID = r"0|[1-9][0-9]{0,9}"
_TOKEN_ID = re.compile(TOKEN_ID)

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
StopString = Annotated[str, msgspec.Meta(min_length=1)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Logprobs = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class RequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both kinds of completions. Null means the default.

    A `top_k` of 0 or -1 and a `min_p` of 0 disable the filter. The keys of `logit_bias` are token ids.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    stop: StopString | list[StopString] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


COMMON_PATHS: Mapping[Location, str] = {
    MODEL: "model",
    ("n",): "n",
    ("max_tokens",): "max_tokens",
    ("stop",): "stop",
    ("stop", EACH): "stop[{0}]",
    ("sampling", "logit_bias"): "logit_bias",
    ("sampling", EACH): "{0}",
}
"""The fields of `RequestBody` by their location in a generation request."""


def sampling_params(body: RequestBody, defaults: RequestDefaults) -> SamplingParams:
    """Parse the sampling parameters.

    Raises:
        InvalidRequest: a key of `logit_bias` is not a token id.
    """
    return defaults.sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=[(_token_id(key), bias) for key, bias in (body.logit_bias or {}).items()],
        seed=body.seed,
    )


def stop_strings(body: RequestBody) -> list[str]:
    return [body.stop] if isinstance(body.stop, str) else body.stop or []


def stop_paths(body: RequestBody) -> dict[Location, str]:
    """Return the path of a single stop string, which has no index."""
    return {("stop", EACH): "stop"} if isinstance(body.stop, str) else {}


def _token_id(key: str) -> int:
    if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_TOKEN_ID:
        raise InvalidRequest(f"`logit_bias`: keys must be token ids such as `50256`, not {key!r}", param="logit_bias")
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
