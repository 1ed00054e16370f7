"""What all objects of one reply have in common, and how much the reply took."""

import msgspec

from osaurusd.inference.events import Completed


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Which reply an object belongs to; `created` is in unix seconds, `model` its API name."""

    id: str
    created: int
    model: str


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the prompt, and of all answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage(done: Completed) -> Usage:
    """The worker's counts in OpenAI's shape."""
    return Usage(
        prompt_tokens=done.usage.prompt_tokens,
        completion_tokens=done.usage.completion_tokens,
        total_tokens=done.usage.prompt_tokens + done.usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=done.usage.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=done.usage.reasoning_tokens),
    )
