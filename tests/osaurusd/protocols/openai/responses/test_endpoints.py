"""Responses over HTTP, from the socket to a worker and back."""

import re

import pytest
from openai import BadRequestError, NotFoundError

from osaurusd.config import Config, Defaults, Limits, Responses

from ...helpers import MODEL

FUNCTION = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "patch", "description": "Edits files"}
NAMESPACE = {"type": "namespace", "name": "mcp__files", "description": "Files", "tools": [FUNCTION]}
KEYS = {
    *re.findall(
        r"\w+",
        """
        id object created_at completed_at status incomplete_details model previous_response_id instructions output error
        tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs
        temperature reasoning user usage max_output_tokens max_tool_calls store background service_tier metadata
        safety_identifier prompt_cache_key conversation""",
    )
}


def text_of(response):
    """Return the text of the messages of a response."""
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


async def test_response_has_all_keys(served):
    response = await served.respond("to be", metadata={"a": "b"}, user="u", instructions="Be brief.")

    assert KEYS == set(response)
    assert ("completed", "to be ", MODEL) == (response["status"], text_of(response), response["model"])
    assert 2 == response["usage"]["output_tokens"]
    assert (0.0, {"a": "b"}, "u") == (response["temperature"], response["metadata"], response["user"])
    assert response["completed_at"] >= response["created_at"]


async def test_events_of_a_text_have_the_order_of_the_schema(served):
    events = await served.events("to be")

    types = [event["type"].removeprefix("response.") for event in events]
    assert [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ] == types
    assert ([], "in_progress") == (events[0]["response"]["output"], events[0]["response"]["status"])
    assert "to be " == "".join(event["delta"] for event in events if event["type"].endswith("delta"))
    assert [events[-2]["item"]] == events[-1]["response"]["output"]
    assert "completed" == events[-2]["item"]["status"]


@pytest.mark.parametrize(
    ("tool", "item"),
    [
        (FUNCTION, {"type": "function_call", "name": "weather", "arguments": '{"a": 1}'}),
        (CUSTOM, {"type": "custom_tool_call", "name": "patch", "input": '{"a": 1}'}),
        (NAMESPACE, {"type": "function_call", "name": "weather", "namespace": "mcp__files", "arguments": '{"a": 1}'}),
    ],
    ids=lambda value: value["type"],
)
async def test_call_is_an_item(served, tool, item):
    skipped = {"type": "web_search"}
    events = await served.events("call", tools=[skipped, tool])

    (output,) = events[-1]["response"]["output"]
    assert item.items() <= output.items()
    field = "input" if item["type"] == "custom_tool_call" else "arguments"
    added = next(event["item"] for event in events if event["type"] == "response.output_item.added")
    assert ("", "in_progress", output["id"]) == (added[field], added["status"], added["id"])
    assert item[field] == "".join(event["delta"] for event in events if event["type"].endswith(".delta"))
    assert item[field] == next(event[field] for event in events if event["type"].endswith(f"{field}.done"))


@pytest.mark.parametrize(("summary", "field"), [(None, "content"), ("auto", "summary")])
async def test_reasoning_precedes_the_message(served, summary, field):
    fields = {"reasoning": {"summary": summary}, "include": ["reasoning.encrypted_content"]}
    events = await served.events("think", **fields)

    reasoning, message = events[-1]["response"]["output"]
    assert "Hm. Yes." == reasoning[field][0]["text"]
    assert reasoning["encrypted_content"]
    assert "thought" == message["content"][0]["text"]
    assert 2 == events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"]
    # Sent back, it is an earlier turn.
    assert "again " == text_of(await served.respond([reasoning, message, {"role": "user", "content": "again"}]))


async def test_limit_makes_a_response_incomplete(served):
    events = await served.events("to be or not", max_output_tokens=2)

    response = events[-1]["response"]
    assert "response.incomplete" == events[-1]["type"]
    assert ("incomplete", {"reason": "max_output_tokens"}) == (response["status"], response["incomplete_details"])
    assert "incomplete" == response["output"][0]["status"]


async def test_logprobs_are_included_on_request(served):
    response = await served.respond("to be", include=["message.output_text.logprobs"], top_logprobs=1)
    assert 2 == len(response["output"][0]["content"][0]["logprobs"])
    assert 1 == response["top_logprobs"]


async def test_prompt_is_processed_without_output(served):
    events = await served.events("to be", prompt_cache_options={"prewarm": True, "ttl": "30m"})
    response = events[-1]["response"]
    assert (3, "completed", []) == (len(events), response["status"], response["output"])
    assert 0 == response["usage"]["output_tokens"]
    continued = await served.respond("or not", previous_response_id=response["id"])
    assert "or not " == text_of(continued)


async def test_empty_input_is_a_response(served):
    assert "completed" == (await served.respond([], max_output_tokens=1))["status"]


async def test_failure_in_a_stream_is_an_event(served):
    events = await served.events("fail")

    response = events[-1]["response"]
    assert ("response.failed", "failed") == (events[-1]["type"], response["status"])
    assert response["error"]["code"]
    assert "incomplete" == response["output"][0]["status"]
    assert response == (await served.get(response["id"])).json


async def test_conversation_continues(served, openai_client):
    first = await served.respond("to be", instructions="Be brief.")
    second = await openai_client.responses.create(model=MODEL, input="or not", previous_response_id=first["id"])
    third = await openai_client.responses.create(model=MODEL, input="end", previous_response_id=second.id)

    assert ("or not ", None) == (second.output_text, second.instructions)
    items = await openai_client.responses.input_items.list(third.id, order="asc", limit=2)
    texts = [item.content[0].text async for item in items]
    assert ["to be", "to be ", "or not", "or not ", "end"] == texts
    await openai_client.responses.delete(second.id)
    with pytest.raises(NotFoundError):
        await openai_client.responses.retrieve(second.id)
    assert third.output == (await openai_client.responses.retrieve(third.id)).output


async def test_unknown_previous_response_is_named(served, openai_client):
    unstored = await served.respond("to be", store=False)
    for id_ in ("resp_1", unstored["id"]):
        with pytest.raises(BadRequestError) as caught:
            await openai_client.responses.create(model=MODEL, input="x", previous_response_id=id_)
        assert ("previous_response_not_found", "previous_response_id") == (caught.value.code, caught.value.param)


async def test_store_drops_responses_beyond_its_size(served):
    first = await served.respond("to be")
    served.config = Config(defaults=Defaults(temperature=0.0), responses=Responses(max_bytes=1500))
    second = await served.respond("to be")
    assert [404, 200] == [(await served.get(response["id"])).status for response in (first, second)]


async def test_input_tokens_are_counted(served, openai_client):
    # A worker that generates crashes with this input.
    counted = await openai_client.responses.input_tokens.count(model=MODEL, input="crash")
    assert 1 == counted.input_tokens


async def test_compaction_replaces_a_conversation(served, openai_client):
    first = await served.respond("to be")
    compacted = await openai_client.responses.compact(model=MODEL, previous_response_id=first["id"], input="or not")
    (item,) = compacted.output
    assert ("response.compaction", "compaction") == (compacted.object, item.type)
    answer = await openai_client.responses.create(
        model=MODEL, input=[item.model_dump(), {"role": "user", "content": "go on"}]
    )
    assert "go on " == answer.output_text


@pytest.mark.parametrize(("fields", "param"), [({"model": None, "input": "x"}, "model"), ({}, "input")])
async def test_incomplete_compaction_request_is_rejected(served, fields, param):
    response = await served.post("/responses/compact", **fields)
    assert (400, param) == (response.status, response.error["param"])


async def test_background_response_is_polled(served, openai_client):
    response = await openai_client.responses.create(model=MODEL, input="hold", background=True)
    assert "queued" == response.status
    assert 1 == served.admission.requests
    stream = await openai_client.responses.retrieve(response.id, stream=True, starting_after=0)
    served.release()
    numbers = [event.sequence_number async for event in stream]
    assert 1 == numbers[0]
    response = await openai_client.responses.retrieve(response.id)
    assert ("completed", "hold ") == (response.status, response.output_text)
    assert 0 == served.admission.requests
    assert "completed" == (await openai_client.responses.cancel(response.id)).status


async def test_background_response_is_cancelled(served, openai_client):
    response = await openai_client.responses.create(model=MODEL, input="stall", background=True)
    events = await openai_client.responses.retrieve(response.id, stream=True)
    async for event in events:
        if event.type == "response.output_text.delta":
            break
    cancelled = await openai_client.responses.cancel(response.id)
    assert ("cancelled", "stall ") == (cancelled.status, cancelled.output_text)
    assert cancelled == await openai_client.responses.retrieve(response.id)


async def test_time_limit_ends_a_background_response(served, openai_client, loop_clock):
    served.config = Config(defaults=Defaults(temperature=0.0), limits=Limits(request_seconds=10))
    response = await openai_client.responses.create(model=MODEL, input="stall", background=True)
    await served.until_received("generate")
    loop_clock.advance(10)
    await served.until_received("cancel")
    await served.admission.wait_until_unused()
    final = await openai_client.responses.retrieve(response.id)

    assert "failed" == final.status
    assert "limits.request_seconds" in final.error.message


async def test_response_in_the_foreground_cannot_be_cancelled(served, openai_client):
    response = await served.respond("to be")
    with pytest.raises(BadRequestError, match="background"):
        await openai_client.responses.cancel(response["id"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 1}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": 3, "arguments": ""}]}, "input[0].name"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools[1].name"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 100}, "top_logprobs"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": 1}}, "conversation.id"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"background": True, "store": False}, "background"),
        ({"model": "unknown"}, "model"),
    ],
)
async def test_invalid_field_is_named(served, fields, param):
    response = await served.post("/responses", **{"input": "x", **fields})
    assert response.status in (400, 404)
    assert param == response.error["param"]


@pytest.mark.parametrize("field", ["tools", "input"])
async def test_deep_nesting_is_rejected_at_any_depth(served, field):
    statuses = set()
    for depth in range(500, 1000, 20):
        nested = f'{{"type": "x", "role": "user", "content": "x", "a": {"[" * depth}{"]" * depth}}}'
        body = f'{{"model": "{MODEL}", "stream": true, "input": "x", "{field}": [{nested}]}}'.encode()
        if field == "input":
            body = body.replace(b'"type": "x", ', b"").replace(b'"input": "x", ', b"")
        response = await served.server.request("POST", "/v1/responses", "Content-Type: application/json", body=body)
        statuses.add(response.status)
        assert b"response.failed" not in response.body
    assert statuses <= {200, 400}


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "order=up", "after=x"])
async def test_invalid_page_is_rejected(served, query):
    response = await served.respond("to be")
    rejected = await served.get(f"{response['id']}/input_items?{query}")
    assert (400, query.partition("=")[0]) == (rejected.status, rejected.error["param"])
