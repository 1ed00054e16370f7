import msgspec
import pytest

from osaurusd.errors import ImageInputUnsupported, InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai.decision_types import DecisionRequest
from osaurusd.protocols.openai.decisions import answer, parse_input, parse_question

PREDICATE = {"type": "predicate", "instructions": "It is hot."}
CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "b", "description": "c"}]}
SCORE = {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]}


def decode(*questions, **fields):
    body = {"input": "x", "questions": list(questions), **fields}
    return decode_json(msgspec.json.encode(body), DecisionRequest)


def parse(*questions, **fields):
    body = decode(*questions, **fields)
    return parse_input(body.input), [parse_question(each, index) for index, each in enumerate(body.questions)]


def respond(question, probabilities):
    return msgspec.to_builtins(answer(decode(question).questions[0], probabilities))


def message(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_answers_have_the_form_of_their_question():
    assert respond(PREDICATE, [0.8, 0.2]) == {"type": "predicate", "name": None, "probability": 0.8}
    assert respond({**CHOICE, "name": "n"}, [0.4, 0.6]) == {
        "type": "choice",
        "name": "n",
        "choice": "b",
        "confidence": 0.6,
        "probabilities": [{"value": "a", "probability": 0.4}, {"value": "b", "probability": 0.6}],
    }
    assert respond(SCORE, [0.25, 0.75]) == {
        "type": "score",
        "name": None,
        "score": 0.75,
        "confidence": 0.75,
        "probabilities": [
            {"label": "low", "value": 0, "probability": 0.25},
            {"label": "high", "value": 1, "probability": 0.75},
        ],
    }


def test_boolean_choices_are_distinct_from_strings():
    choices = [{"value": True}, {"value": "true"}]
    _, (question,) = parse({**CHOICE, "choices": choices})
    assert [option.name for option in question.options] == ["true", "true"]
    assert respond({**CHOICE, "choices": choices}, [0.9, 0.1])["choice"] is True


def test_input_items_become_messages():
    conversation, _ = parse(
        PREDICATE,
        input=[
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "sunny"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
            {"role": "user", "content": [{"type": "input_json", "data": {"b": 1}}]},
        ],
    )
    assert [each.role for each in conversation.messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert conversation.messages[-1].text == '{"b":1}'


def test_instructions_may_consist_of_parts():
    parts = [{"type": "input_text", "text": "Like this?"}, {"type": "input_json", "data": [{"a": None}]}]
    _, (question,) = parse({**CHOICE, "instructions": parts})
    assert question.text == 'Question: Like this?\n[{"a":null}]'


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [PREDICATE, {**CHOICE, "choices": [{"value": "a"}]}]}, "questions[1].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": str(n)} for n in range(256)]}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}, {"value": 1}]}]}, "questions[0].choices[1].value"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]}, "questions[0].choices[1].value"),
        ({"questions": [{**SCORE, "levels": [{"label": "a"}] * 2}]}, "questions[0].levels[1].label"),
        ({"questions": [{**SCORE, "levels": []}]}, "questions[0].levels"),
        ({"questions": [PREDICATE, {**PREDICATE, "instructions": " "}]}, "questions[1].instructions"),
        ({"questions": [{**PREDICATE, "instructions": []}]}, "questions[0].instructions"),
        ({"questions": [{**PREDICATE, "instructions": [{"type": "x"}]}]}, "questions[0].instructions[0].type"),
        ({"questions": [{**PREDICATE, "instructions": [{"type": "input_text"}]}]}, "questions[0].instructions[0].text"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions"),
        ({"questions": [{"type": "essay", "instructions": "x"}]}, "questions[0].type"),
        ({"input": None}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": message({"type": "input_json", "data": "x"})}, "input[0].content[0].data"),
        ({"input": message({"type": "input_json", "data": [1]})}, "input[0].content[0].data"),
        ({"input": message({"type": "input_json", "data": {"a": [0] * 10_001}})}, "input[0].content[0].data"),
        ({"input": message({"type": "input_json", "data": {"a": "x" * 2**18}})}, "input[0].content[0].data"),
    ],
)
def test_an_invalid_field_is_named(fields, path):
    with pytest.raises(InvalidRequest) as failure:
        parse(PREDICATE, **fields)
    assert failure.value.param == path


def test_images_are_rejected():
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    with pytest.raises(ImageInputUnsupported) as failure:
        parse(PREDICATE, input=message(image))
    assert failure.value.param == "input[0].content[0]"
    with pytest.raises(ImageInputUnsupported) as failure:
        parse({**PREDICATE, "instructions": [image]})
    assert failure.value.param == "questions[0].instructions[0]"
