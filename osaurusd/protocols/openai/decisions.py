"""`POST /decisions`: the probabilities of answers to typed questions, from the body of the request to the response."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from osaurusd.conversion import convert
from osaurusd.errors import ImageInputUnsupported, InvalidRequest
from osaurusd.http.json import json_response, read_json
from osaurusd.inference import limits
from osaurusd.inference.decisions import Option, Question
from osaurusd.inference.service import Service
from osaurusd.protocols.openai.decision_types import (
    Answer,
    ChoiceAnswer,
    ChoiceProbability,
    ChoiceQuestion,
    Decision,
    DecisionQuestion,
    DecisionRequest,
    DecisionUsage,
    InstructionPart,
    LevelProbability,
    PredicateAnswer,
    PredicateQuestion,
    ScoreAnswer,
    ScoreQuestion,
)
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.responses.items import ParsedItems, input_items, item_type, parse_items
from osaurusd.protocols.openai.responses.types import Item
from osaurusd.wire.errors import as_json

DECISION_PATHS = {limits.MODEL: "model", ("prompt",): "input", limits.QUESTIONS: "questions"}
"""The fields of a `DecisionRequest` by their location in the neutral request."""

# OpenAI's limits for a JSON part.
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 10_000
MAX_JSON_BYTES = 256 * 1024

_ITEM_TYPES = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
)
_TRUE, _FALSE = Option(name="Yes"), Option(name="No")


class Decisions:
    """Handles the endpoint.

    Args:
        service: serves decisions.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: web.Request) -> web.Response:
        body = await read_json(request, DecisionRequest)
        with FieldPaths(DECISION_PATHS).named():
            items = None if isinstance(body.input, str) else body.input
            self._service.check_lengths({limits.MESSAGES: items})
        conversation = await convert(parse_input, body.input)
        questions = await convert(parse_questions, body.questions)
        paths = {**conversation.paths, **DECISION_PATHS, (*limits.QUESTIONS, limits.EACH): "questions[{0}]"}
        with FieldPaths(paths).named():
            record = await self._service.find(body.model)
            probabilities, completed = await self._service.decide(record, conversation.messages, questions)
        answers = [answer(*pair) for pair in zip(body.questions, probabilities, strict=True)]
        return json_response(
            Decision(answers=answers, model=record.name, usage=DecisionUsage.from_completed(completed))
        )


def parse_input(value: str | list[Item]) -> ParsedItems:
    """Convert the input to messages.

    Raises:
        InvalidRequest: an item is invalid.
        ImageInputUnsupported: an item has an image.
    """
    items = [value] if isinstance(value, str) else value
    paths = ["input"] if isinstance(value, str) else [f"input[{index}]" for index in range(len(items))]
    if isinstance(value, list):
        _check_items(value)
        value = [_with_text_only(item, path) for item, path in zip(value, paths, strict=True)]
    return parse_items(input_items(value), paths, None, None)


def parse_questions(questions: Sequence[DecisionQuestion]) -> list[Question]:
    """Convert the questions; raises what `parse_question` raises."""
    return [parse_question(question, index) for index, question in enumerate(questions)]


def parse_question(question: DecisionQuestion, index: int) -> Question:
    """Convert a question.

    Raises:
        InvalidRequest: its instructions are empty, or an option occurs twice.
        ImageInputUnsupported: its instructions have an image.
    """
    path = f"questions[{index}]"
    text = _instructions(question.instructions, f"{path}.instructions")
    match question:
        case PredicateQuestion():
            return Question(text=f"Statement: {text}\nIs the statement true?", options=[_TRUE, _FALSE])
        case ChoiceQuestion(choices=choices):
            values = [(type(choice.value), choice.value) for choice in choices]
            _check_unique(values, f"{path}.choices", "value")
            options = [Option(name=_value_text(choice.value), description=choice.description) for choice in choices]
            return Question(text=f"Question: {text}", options=options)
        case ScoreQuestion(levels=levels):
            _check_unique([level.label for level in levels], f"{path}.levels", "label")
            options = [Option(name=level.label, description=level.description) for level in levels]
            return Question(text=f"Question: {text}", options=options, ordered=True)


def answer(question: DecisionQuestion, probabilities: Sequence[float]) -> Answer:
    """Render the answer to a question, given the probabilities of its options."""
    highest = max(probabilities)
    match question:
        case PredicateQuestion():
            return PredicateAnswer(name=question.name, probability=probabilities[0])
        case ChoiceQuestion(choices=choices):
            return ChoiceAnswer(
                name=question.name,
                choice=choices[probabilities.index(highest)].value,
                confidence=highest,
                probabilities=[
                    ChoiceProbability(value=choice.value, probability=probability)
                    for choice, probability in zip(choices, probabilities, strict=True)
                ],
            )
        case ScoreQuestion(levels=levels):
            return ScoreAnswer(
                name=question.name,
                score=sum(value * probability for value, probability in enumerate(probabilities)),
                confidence=highest,
                probabilities=[
                    LevelProbability(label=level.label, value=value, probability=probability)
                    for value, (level, probability) in enumerate(zip(levels, probabilities, strict=True))
                ],
            )


def _check_items(items: Sequence[Item]) -> None:
    """Check the types of items, and that every output belongs to a call."""
    calls: set[Any] = set()
    for index, item in enumerate(items):
        type_ = item_type(item)
        if type_ not in _ITEM_TYPES:
            path = f"input[{index}].type"
            allowed = ", ".join(f"`{name}`" for name in _ITEM_TYPES)
            raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {as_json(item.get('type'))}", param=path)
        call = item.get("call_id")
        if type_.endswith("_call") and isinstance(call, str):
            calls.add(call)
        elif type_.endswith("_output") and isinstance(call, str) and call not in calls:
            path = f"input[{index}].call_id"
            raise InvalidRequest(f"`{path}`: no earlier call has this id", param=path)


def _with_text_only(item: Item, path: str) -> Item:
    """Return a message with its JSON parts as text."""
    content = item.get("content")
    if not isinstance(content, list):
        return item
    parts = [
        {"type": "input_text", "text": _json_text(part.get("data"), f"{path}.content[{index}].data")}
        if isinstance(part, dict) and part.get("type") == "input_json"
        else part
        for index, part in enumerate(content)
    ]
    return {**item, "content": parts}


def _instructions(instructions: str | list[InstructionPart], path: str) -> str:
    if isinstance(instructions, list):
        instructions = "\n".join(_part_text(part, f"{path}[{index}]") for index, part in enumerate(instructions))
    if not instructions.strip():
        raise InvalidRequest(f"`{path}`: must not be empty", param=path)
    return instructions


def _part_text(part: InstructionPart, path: str) -> str:
    match part.type:
        case "input_text" if part.text is not None:
            return part.text
        case "input_text":
            raise InvalidRequest(f"`{path}.text`: is required in a text part", param=f"{path}.text")
        case "input_json":
            return _json_text(part.data, f"{path}.data")
        case "input_image":
            raise ImageInputUnsupported(f"`{path}`: image input is not supported; send text parts only", param=path)
        case type_:
            path = f"{path}.type"
            raise InvalidRequest(f"`{path}`: must be `input_text` or `input_json`, not {as_json(type_)}", param=path)


def _json_text(data: Any, path: str) -> str:
    """Return a JSON object, or a list of objects, as text.

    Raises:
        InvalidRequest: it is something else, or too large.
    """
    is_list = isinstance(data, list) and all(isinstance(item, dict) for item in data)
    if not isinstance(data, dict) and not is_list:
        raise InvalidRequest(f"`{path}`: must be an object or a list of objects", param=path)
    text = msgspec.json.encode(data)
    if limits.json_depth(data) > MAX_JSON_DEPTH or _count_values(data) > MAX_JSON_VALUES or len(text) > MAX_JSON_BYTES:
        raise InvalidRequest(
            f"`{path}`: must have at most {MAX_JSON_DEPTH} levels, {MAX_JSON_VALUES} values and {MAX_JSON_BYTES} bytes",
            param=path,
        )
    return text.decode()


def _count_values(data: Any) -> int:
    count, level = 0, [data]
    while level:
        count += len(level)
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return count


def _check_unique(values: Iterable[object], path: str, field: str) -> None:
    seen: set[object] = set()
    for index, value in enumerate(values):
        if value in seen:
            full = f"{path}[{index}].{field}"
            raise InvalidRequest(f"`{full}`: must differ from those before it", param=full)
        seen.add(value)


def _value_text(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()
