"""Defaults for parameters that a request omits: from the model's own settings, else from the configuration."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from osaurusd.config import Config, Input, Structured
from osaurusd.inference.request import SamplingParams
from osaurusd.models.record import GenerationDefaults

T = TypeVar("T")

# Nucleus sampling over an empty set is undefined. Like OpenAI, osaurusd treats 0 as "the most likely token only".
MIN_TOP_P = 1e-6


class RequestDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults for requests to one model.

    Attributes:
        max_tokens: None means up to the end of the context.
        max_forced_calls: maximum number of tool calls in an output that must consist of calls.
        describe_schema: tell the model the format of a structured output.
    """

    temperature: float
    top_p: float
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    max_forced_calls: int = Input().max_forced_calls
    describe_schema: bool = Structured().describe_schema

    @classmethod
    def from_config(cls, model: GenerationDefaults, config: Config) -> "RequestDefaults":
        """Combine the settings of a model with those of the configuration; the model's take precedence."""
        return cls(
            temperature=_first(model.temperature, config.defaults.temperature),
            top_p=_first(model.top_p, config.defaults.top_p),
            top_k=_first(model.top_k, 0),
            min_p=_first(model.min_p, 0.0),
            repetition_penalty=_first(model.repetition_penalty, 1.0),
            max_tokens=config.defaults.max_tokens,
            max_forced_calls=config.input.max_forced_calls,
            describe_schema=config.structured.describe_schema,
        )

    def sampling(
        self,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        logit_bias: Sequence[tuple[int, float]] = (),
        seed: int | None = None,
    ) -> SamplingParams:
        """Return sampling parameters, with defaults for those that are None. A negative `top_k` disables the filter."""
        return SamplingParams(
            temperature=_first(temperature, self.temperature),
            top_p=max(_first(top_p, self.top_p), MIN_TOP_P),
            top_k=max(_first(top_k, self.top_k), 0),
            min_p=_first(min_p, self.min_p),
            repetition_penalty=_first(repetition_penalty, self.repetition_penalty),
            frequency_penalty=_first(frequency_penalty, 0.0),
            presence_penalty=_first(presence_penalty, 0.0),
            logit_bias=list(logit_bias),
            seed=seed,
        )


def _first(value: T | None, default: T) -> T:
    return default if value is None else value
