"""The prompt describes the format of the output, unless the messages do."""

import json

import pytest

from osaurusd.inference.request import ChatPrompt, JsonObject, JsonSchema, Message, RequiredToolCalls, TextChoice
from osaurusd.worker.frontend.format_prompt import describe_format

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "größe": {"type": "integer"}}}
USER = Message.from_text("user", "Describe a person.")
SYSTEM = Message.from_text("system", "Be brief.")


def describe(constraint, *messages):
    return describe_format(ChatPrompt(messages=[*messages]), constraint).messages


def test_schema_is_added_as_a_system_message():
    system, user = describe(JsonSchema(schema=SCHEMA, describe=True), USER)

    assert (system.role, user) == ("system", USER)
    assert json.loads(system.text.splitlines()[-1]) == SCHEMA


def test_schema_follows_the_instructions_of_the_request():
    system, user = describe(JsonSchema(schema=SCHEMA, describe=True), SYSTEM, USER)

    assert system.text.startswith("Be brief.\n\n")
    assert json.loads(system.text.splitlines()[-1]) == SCHEMA
    assert user == USER


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(SCHEMA, ensure_ascii=False, indent=2),
        'Answer as JSON with the keys "name" and "größe".',
        "JSON: `name`, then 'größe'",
    ],
)
@pytest.mark.parametrize("role", ["system", "user"])
def test_described_schema_is_not_repeated(role, text):
    messages = [Message.from_text(role, text), USER]
    assert describe(JsonSchema(schema=SCHEMA, describe=True), *messages) == messages


def test_schema_without_properties_is_described_by_its_text():
    schema = {"type": "array", "items": {"type": "integer"}}
    constraint = JsonSchema(schema=schema, describe=True)
    mentioned = Message.from_text("user", f"Answer: {json.dumps(schema)}")

    assert len(describe(constraint, USER)) == 2
    assert describe(constraint, mentioned) == [mentioned]


@pytest.mark.parametrize("mentions", ["name", 'A "name" of a person', "größe and name"])
def test_schema_of_which_only_a_part_is_mentioned_is_added(mentions):
    assert len(describe(JsonSchema(schema=SCHEMA, describe=True), Message.from_text("user", mentions))) == 2


def test_json_object_is_described_unless_the_messages_mention_json():
    system, _ = describe(JsonObject(describe=True), USER)
    assert "JSON object" in system.text

    mentioned = Message.from_text("user", "Use Json.")
    assert describe(JsonObject(describe=True), mentioned) == [mentioned]


def test_choices_are_listed_unless_the_messages_do():
    constraint = TextChoice(choices=["spam", "ham"], describe=True)
    system, _ = describe(constraint, USER)
    assert '["spam", "ham"]' in system.text

    mentioned = Message.from_text("user", "Is this spam or ham?")
    assert describe(constraint, mentioned) == [mentioned]


@pytest.mark.parametrize(
    "constraint",
    [
        None,
        JsonObject(),
        JsonSchema(schema=SCHEMA),
        JsonSchema(schema={}, describe=True),
        TextChoice(choices=["spam"]),
        RequiredToolCalls(names=["f"]),
    ],
)
def test_prompt_is_unchanged_otherwise(constraint):
    assert describe(constraint, SYSTEM, USER) == [SYSTEM, USER]
