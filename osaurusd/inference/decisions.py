"""Questions with fixed options: how a model is asked, and what its log-probabilities say about each option.

A question lists its options, and the candidates for the beginning of the answer are their names. Models prefer options
in some positions, whatever these are. So every question is asked several times with its options in different orders,
and an option's log-probability is its mean over the orders: if each option has had each position once, such a
preference adds the same to all of them, and the softmax over the options is free of it.
"""

import math
from collections.abc import Sequence
from itertools import islice, pairwise, permutations, product
from string import ascii_uppercase
from typing import Any

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.inference.request import ChatPrompt, Continuation, Message, ScoringRequest, TextPart

# Up to this many options are listed in all orders, more of them in rotations. With all rotations, each option has each
# position once.
_MAX_PERMUTED = 3
# So many options that all rotations together would list more than `_MAX_LISTED` are listed in fewer of them.
_MAX_LISTED = 64
_MIN_ROTATIONS = 2

_TEMPLATE_VARIABLES: dict[str, Any] = {"enable_thinking": False, "reasoning_effort": "none"}
_ANSWER_NAME = "Answer with exactly one of these options and nothing else."
_ANSWER_LETTER = "Answer with the letter of one of these options and nothing else."


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to choose from; the description explains the name to the model."""

    name: str
    description: str | None = None

    @property
    def text(self) -> str:
        return f"{self.name}: {self.description}" if self.description else self.name


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question about the messages of a chat.

    Attributes:
        text: the question.
        options: the answers to choose from, at least two with different names.
        ordered: the options are the levels of a scale, which are listed upwards and downwards only.
    """

    text: str
    options: list[Option]
    ordered: bool = False

    @property
    def orders(self) -> list[list[int]]:
        """The orders in which to list the options: the numbers of the options, first one first."""
        count = len(self.options)
        numbers = list(range(count))
        if self.ordered:
            return [numbers, numbers[::-1]]
        if count <= _MAX_PERMUTED:
            return [list(order) for order in permutations(numbers)]
        rotations = min(count, max(_MIN_ROTATIONS, _MAX_LISTED // count))
        starts = [turn * count // rotations for turn in range(rotations)]
        return [numbers[start:] + numbers[:start] for start in starts]


def build_request(messages: Sequence[Message], questions: Sequence[Question]) -> ScoringRequest:
    """Build the request that asks every question in all of its orders.

    Args:
        messages: what the questions are about.
        questions: at least one.
    """
    prompt = ChatPrompt(messages=_with_open_end(messages), template_variables=_TEMPLATE_VARIABLES)
    continuations = [_continuation(question, order) for question in questions for order in question.orders]
    return ScoringRequest(prompt=prompt, continuations=continuations)


def probabilities(questions: Sequence[Question], logprobs: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the probability of each option of each question.

    Args:
        questions: those that `build_request` has got.
        logprobs: the log-probabilities of all candidates of its request.
    """
    remaining = iter(logprobs)
    return [
        _softmax(_average(question.orders, list(islice(remaining, len(question.orders))))) for question in questions
    ]


def locate_question(error: OsaurusError, questions: Sequence[Question]) -> OsaurusError:
    """Return the error with the number of the question in its location if a continuation is at fault."""
    if error.location is None or error.location[0] != "continuations":
        return error
    numbers = [number for number, question in enumerate(questions) for _ in question.orders]
    return type(error)(error.message, location=("questions", numbers[int(error.location[1])]))


def labels(count: int) -> list[str]:
    """Return labels for options: letters, or pairs of letters if there are too many options for single ones."""
    length = 1 if count <= len(ascii_uppercase) else 2
    return ["".join(letters) for letters in islice(product(ascii_uppercase, repeat=length), count)]


def _with_open_end(messages: Sequence[Message]) -> list[Message]:
    """Return the messages, the last of which is one of the user that ends where a question can follow."""
    if not messages or messages[-1].role != "user":
        return [*messages, Message(role="user")]
    last = messages[-1]
    return [*messages[:-1], msgspec.structs.replace(last, content=[*last.content, TextPart(text="\n\n")])]


def _continuation(question: Question, order: Sequence[int]) -> Continuation:
    options = [question.options[number] for number in order]
    names = [option.name for option in options]
    if _are_ambiguous(names):
        names, answer = labels(len(options)), _ANSWER_LETTER
        listed = [f"{letter}. {option.text}" for letter, option in zip(names, options, strict=True)]
    else:
        listed, answer = [f"- {option.text}" for option in options], _ANSWER_NAME
    return Continuation(text="\n".join([question.text, "", "Options:", *listed, "", answer]), candidates=names)


def _are_ambiguous(names: Sequence[str]) -> bool:
    """Whether one name begins with another one, so that the beginning of an answer would not tell them apart."""
    ordered = sorted(names)
    return any(following.startswith(name) for name, following in pairwise(ordered))


def _average(orders: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean log-probability of each option, given those of the positions in each order."""
    sums = [0.0] * len(orders[0])
    for order, values in zip(orders, logprobs, strict=True):
        for number, value in zip(order, values, strict=True):
            sums[number] += value
    return [value / len(orders) for value in sums]


def _softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    total = sum(weights)
    return [weight / total for weight in weights]
