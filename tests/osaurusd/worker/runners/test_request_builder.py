"""Building engine requests from the requests of clients."""

import pytest

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonSchema,
    Message,
    RequiredToolCalls,
    SamplingParams,
    TextPart,
    TextPrompt,
    Tool,
)
from osaurusd.rpc import messages
from osaurusd.worker.engine.probe import Probe
from osaurusd.worker.frontend import schema_repair
from osaurusd.worker.runners.loading import load_model_folder
from osaurusd.worker.runners.request_builder import RequestBuilder

MALFORMED = {"type": "dict", "properties": {"on": {"type": "bool"}}, "required": ["on"], "additionalProperties": False}
CHAT = ChatPrompt(messages=[Message(role="user", content=[TextPart(text="Go on.")])])


@pytest.fixture(scope="module")
def build(tiny_folder):
    """Build the engine request for a prompt and other fields of a request."""
    model = load_model_folder(messages.Load(path=str(tiny_folder), context_length=2048))
    probe = Probe.from_network(model.network)
    builder = RequestBuilder(model, probe.layout, probe.vocabulary)

    def build(prompt, **fields):
        request = GenerationRequest(prompt=prompt, sampling=SamplingParams(temperature=0), **fields)
        return builder.build(messages.Generate(id=1, request=request))

    return build


@pytest.mark.parametrize(
    ("prompt", "constraint"),
    [
        (CHAT, JsonSchema(schema=MALFORMED)),
        (CHAT, JsonSchema(schema=MALFORMED, describe=True)),
        (TextPrompt(text="Go on."), JsonSchema(schema=MALFORMED)),
        (
            ChatPrompt(messages=CHAT.messages, tools=[Tool(name="f", parameters=MALFORMED)]),
            RequiredToolCalls(names=["f"]),
        ),
    ],
    ids=["chat", "described", "text", "tool"],
)
def test_each_schema_is_repaired_once(build, monkeypatch, prompt, constraint):
    repaired, repair = [], schema_repair.repair

    def record(schema):
        repaired.append(schema)
        return repair(schema)

    monkeypatch.setattr(schema_repair, "repair", record)

    request = build(prompt, constraint=constraint)

    assert [MALFORMED] == repaired
    assert request.choices[0].sampling.constraint is not None


def test_schema_that_is_too_deep_is_rejected(build):
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}

    with pytest.raises(InvalidRequest, match="the schema cannot be used") as raised:
        build(CHAT, constraint=JsonSchema(schema=schema))

    assert ("constraint", "schema") == raised.value.location
