"""Anthropic's endpoints over HTTP, from the socket to a worker and back."""

import pytest

from ..helpers import MODEL

TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
THINKING = {"type": "adaptive"}
MODELS = ["gemma-2-27b-instruct", MODEL, "gemma-2-9b-instruct"]


async def test_message_is_one_object(anthropic):
    response = await anthropic.post()
    message = response.json
    assert response.status == 200
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "to be "}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }


async def test_stream_has_events_in_order(anthropic):
    events = await anthropic.stream()
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["input_tokens"]) == ([], None, 1)
    assert events[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert events[3]["delta"] == {"type": "text_delta", "text": "to "}
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 2


async def test_limit_of_tokens_is_the_stop_reason(anthropic):
    message = (await anthropic.post(max_tokens=1)).json
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "to "}], "max_tokens")
    message = (await anthropic.post(max_tokens=0)).json
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")


async def test_tool_use_has_an_object_as_input(anthropic):
    message = (await anthropic.post("call", tools=TOOLS)).json
    assert message["stop_reason"] == "tool_use"
    assert message["content"] == [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"a": 1}}]


async def test_tool_use_is_streamed_as_partial_json(anthropic):
    events = await anthropic.stream("call", tools=TOOLS)
    (start,) = [event for event in events if event["type"] == "content_block_start"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert start["content_block"] == {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    assert {delta["type"] for delta in deltas} == {"input_json_delta"}
    assert "".join(delta["partial_json"] for delta in deltas) == '{"a": 1}'


async def test_thinking_is_a_block_with_a_signature(anthropic):
    thinking, text = (await anthropic.post("think", thinking=THINKING)).json["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "Hm. Yes.")
    assert thinking["signature"]
    assert text == {"type": "text", "text": "thought"}
    events = await anthropic.stream("think", thinking=THINKING)
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "thinking_delta", "signature_delta", "text_delta"]


async def test_thinking_is_shown_only_on_request(anthropic):
    for fields in ({}, {"thinking": {"type": "disabled"}}):
        content = (await anthropic.post("think", **fields)).json["content"]
        assert content == [{"type": "text", "text": "thought"}]
    thinking, _ = (await anthropic.post("think", thinking={**THINKING, "display": "omitted"})).json["content"]
    assert thinking["thinking"] == ""
    assert thinking["signature"]


@pytest.mark.parametrize("path", ["/v1/messages", "/messages"])
async def test_tokens_are_counted_without_generating(anthropic, path):
    response = await anthropic.post("crash", f"{path}/count_tokens", max_tokens=None)
    assert (response.status, response.json) == (200, {"input_tokens": 1})


async def test_paths_without_prefix_and_with_a_query_are_served(anthropic):
    for path in ("/messages", "/v1/messages?beta=true"):
        assert (await anthropic.post(path=path)).status == 200


@pytest.mark.parametrize(
    ("fields", "status", "type_", "text"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "`max_tokens`: is required"),
        ({"messages": []}, 400, "invalid_request_error", "`messages`: at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request_error", "`messages[0].role`"),
        ({"model": "none"}, 404, "not_found_error", '`model`: model "none" does not exist'),
        ({"temperature": "hot"}, 400, "invalid_request_error", "`temperature`"),
    ],
)
async def test_errors_have_type_and_request_id(anthropic, fields, status, type_, text):
    response = await anthropic.post(**fields)
    assert (response.status, list(response.json)) == (status, ["type", "error", "request_id"])
    assert (response.json["type"], response.json["error"]["type"]) == ("error", type_)
    assert response.json["error"]["message"].startswith(text)
    assert response.json["request_id"] == response.headers["request-id"]


async def test_unknown_paths_and_methods_have_the_same_errors(anthropic):
    for method, path, status, type_ in (
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/models/none", 404, "not_found_error"),
    ):
        response = await anthropic.request(method, path)
        assert (response.status, response.json["error"]["type"]) == (status, type_)


async def test_error_in_the_middle_of_a_stream_is_its_last_event(anthropic):
    *_, last = await anthropic.stream("fail")
    assert last["type"] == "error"
    assert last["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: `messages`: too long",
    }
    assert last["request_id"]


async def test_models_have_the_format_of_the_client_that_asks(anthropic):
    page = (await anthropic.request("GET", "/v1/models")).json
    assert [model["id"] for model in page["data"]] == MODELS
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, MODELS[0], MODELS[-1])
    shown = (await anthropic.request("GET", f"/models/{MODEL}")).json
    assert shown in page["data"]
    assert (shown["type"], shown["lifecycle"], shown["max_input_tokens"]) == ("model", "active", 4096)
    assert shown["created_at"].endswith("Z")
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        response = await anthropic.server.request("GET", path)
        assert response.json["object"] in ("list", "model")


@pytest.mark.parametrize(
    ("query", "expected", "has_more"),
    [
        ("limit=2", MODELS[:2], True),
        (f"limit=2&after_id={MODELS[1]}", MODELS[2:], False),
        (f"limit=1&before_id={MODELS[2]}", MODELS[1:2], True),
        (f"before_id={MODELS[1]}", MODELS[:1], False),
    ],
)
async def test_models_are_listed_by_pages(anthropic, query, expected, has_more):
    page = (await anthropic.request("GET", f"/v1/models?{query}")).json
    assert ([model["id"] for model in page["data"]], page["has_more"]) == (expected, has_more)


@pytest.mark.parametrize("limit", ["0", "1001", "x", "²", "-1"])
async def test_page_of_another_size_is_rejected(anthropic, limit):
    response = await anthropic.request("GET", f"/v1/models?limit={limit}".encode().decode("latin-1"))
    assert response.status == 400
