"""How tokens are chosen and when to stop: what the request says, else the model, else the configuration."""

import re
from typing import TypeVar

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import SamplingParams
from osaurusd.models.record import GenerationDefaults
from osaurusd.protocols.openai.schema.base import MAX_TOKEN_ID, Request

T = TypeVar("T")

# Sampling from an empty set is undefined; OpenAI takes 0 to mean the most likely token only.
SMALLEST_TOP_P = 1e-6

TOKEN_ID = r"0|[1-9][0-9]{0,9}"
_TOKEN_ID = re.compile(TOKEN_ID)


def sampling(request: Request, model: GenerationDefaults, defaults: Defaults) -> SamplingParams:
    """The request's sampling; it wins over the model's own defaults, those over the config file's.

    Raises:
        InvalidRequest: a key of `logit_bias` is no token id.
    """
    top_p = _first(request.top_p, model.top_p, defaults.top_p)
    return SamplingParams(
        temperature=_first(request.temperature, model.temperature, defaults.temperature),
        top_p=max(top_p, SMALLEST_TOP_P),
        # Some clients say -1 where others say 0: cut nothing off.
        top_k=max(_first(request.top_k, model.top_k, 0), 0),
        min_p=_first(request.min_p, model.min_p, 0.0),
        repetition_penalty=_first(request.repetition_penalty, model.repetition_penalty, 1.0),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=[(_token_id(key), bias) for key, bias in (request.logit_bias or {}).items()],
        seed=request.seed,
    )


def stop(request: Request) -> list[str]:
    """The stop strings."""
    return [request.stop] if isinstance(request.stop, str) else request.stop or []


def _first(*values: T | None) -> T:
    return next(value for value in values if value is not None)


def _token_id(key: str) -> int:
    if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_TOKEN_ID:
        raise InvalidRequest(f"`logit_bias`: its keys are token ids such as `50256`, not {key!r}", param="logit_bias")
    return int(key)
