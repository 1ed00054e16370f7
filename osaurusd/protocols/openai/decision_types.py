"""The bodies of `POST /decisions`, as OpenAI's client defines them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from osaurusd.inference import events as neutral
from osaurusd.protocols.openai.responses.types import Item

IGNORED_FIELDS = ("prompt_cache_key", "prompt_cache_options", "safety_identifier")
"""Fields that are accepted and have no effect: the prefix cache needs no hints, and there is no abuse monitoring."""

MAX_QUESTIONS = 400
MAX_OPTIONS = 255


class InstructionPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the instructions of a question: `input_text` with `text`, or `input_json` with `data`."""

    type: str
    text: str | None = None
    data: Any = None


Instructions = str | list[InstructionPart]


class ChoiceOption(msgspec.Struct, frozen=True, kw_only=True):
    """One choice. The string "true" and the boolean are different values."""

    value: str | bool
    description: str | None = None


class ScoreLevel(msgspec.Struct, frozen=True, kw_only=True):
    label: str
    description: str | None = None


class PredicateQuestion(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="predicate"):
    """How likely is it that the statement in `instructions` is true?"""

    instructions: Instructions
    name: str | None = None


class ChoiceQuestion(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="choice"):
    """Which of the choices applies?"""

    instructions: Instructions
    choices: Annotated[list[ChoiceOption], Meta(min_length=2, max_length=MAX_OPTIONS)]
    name: str | None = None


class ScoreQuestion(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="score"):
    """Which level of a scale applies? The levels are in ascending order."""

    instructions: Instructions
    levels: Annotated[list[ScoreLevel], Meta(min_length=2, max_length=MAX_OPTIONS)]
    name: str | None = None


DecisionQuestion = PredicateQuestion | ChoiceQuestion | ScoreQuestion


class DecisionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Questions about one input."""

    input: str | list[Item]
    questions: Annotated[list[DecisionQuestion], Meta(min_length=1, max_length=MAX_QUESTIONS)]
    model: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


class PredicateAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="predicate"):
    name: str | None
    probability: float


class ChoiceProbability(msgspec.Struct, frozen=True, kw_only=True):
    value: str | bool
    probability: float


class ChoiceAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="choice"):
    """The most likely choice. `confidence` is its probability."""

    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]


class LevelProbability(msgspec.Struct, frozen=True, kw_only=True):
    """A level. `value` is its number, counted from 0."""

    label: str
    value: int
    probability: float


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="score"):
    """The mean of the levels' values, weighted by their probabilities. `confidence` is the highest probability."""

    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]


Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0


class DecisionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of the input, and of the questions in all orders of their options. Nothing is generated."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    total_tokens: int
    output_tokens: Literal[0] = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()

    @classmethod
    def from_completed(cls, completed: neutral.Completed) -> "DecisionUsage":
        usage = completed.usage
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
            total_tokens=usage.prompt_tokens,
        )


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The response. The answers are in the order of the questions."""

    answers: list[Answer]
    model: str
    usage: DecisionUsage
