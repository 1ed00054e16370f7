"""The events that a generation request produces, independent of the client's protocol.

A stream is one `Started`, then `Delta`s and one `Finished` for each choice, interleaved, then one `Completed`. With
`report_progress`, `Progress` precedes the first `Delta`. A scoring request yields `CandidateScores` and `Completed`.
"""

import contextlib
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls"]


class _Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the events and their parts."""


class Logprob(_Event, frozen=True):
    """A token and its log-probability; None for the first token of an echoed prompt, which has none."""

    text: str
    bytes: list[int]
    logprob: float | None = None


class TokenLogprob(Logprob, frozen=True):
    """A prompt or output token with the most likely tokens at its position, most likely first."""

    top: list[Logprob] = []


class ToolCallDelta(_Event, frozen=True):
    """The next piece of tool call `index` of a choice: first its id and name, then its arguments in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


def decode_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a tool call; those of a call that the token limit cut off are empty."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        arguments = msgspec.json.decode(text)
        if isinstance(arguments, dict):
            return arguments
    return {}


class Started(_Event, frozen=True, tag="started"):
    """Prefill begins: the request is tokenized, admitted, and looked up in the prefix cache."""

    prompt_tokens: int
    cached_tokens: int = 0


class Progress(_Event, frozen=True, tag="progress"):
    """A part of the prompt has been processed, `prefilled` tokens so far, of which `cached_tokens` were cached."""

    prompt_tokens: int
    prefilled: int
    cached_tokens: int = 0


class Delta(_Event, frozen=True, tag="delta"):
    """New output of choice `index`. The first delta of a choice may be empty: its prompt has been processed."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprob] = []


class Finished(_Event, frozen=True, tag="finished"):
    """Choice `index` is complete. `stop` is the stop string that matched, if one did."""

    reason: FinishReason
    index: int = 0
    stop: str | None = None


class CandidateScores(_Event, frozen=True, tag="candidate_scores"):
    """The natural log-probabilities of the candidates of each continuation."""

    logprobs: list[list[float]]


class Usage(_Event, frozen=True):
    """Token counts over all choices. `cached_tokens` of the prompt came from the prefix cache.

    `reasoning_tokens` are part of `completion_tokens`. The end-of-sequence token is not counted.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Timings(_Event, frozen=True):
    """How the time of a request was spent, in seconds: waiting, loading the model, prefill, decode."""

    queue: float = 0.0
    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


class Completed(_Event, frozen=True, tag="completed"):
    """Every choice is complete."""

    usage: Usage
    timings: Timings = Timings()


Event = Started | Progress | Delta | Finished | Completed
