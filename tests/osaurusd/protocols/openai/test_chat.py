"""`POST /chat/completions` from the socket to a worker and back."""

import asyncio

import pytest

from tests.osaurusd.pool.asking import until

from .conftest import MODEL

PATHS = ["/chat/completions", "/v1/chat/completions"]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def saying(text, **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize("path", PATHS)
async def test_a_chat_is_answered_whole(serving_model, path):
    answer = await serving_model.post(path, **saying("to be", n=2))

    assert answer.status == 200
    assert (answer.json["object"], answer.json["model"]) == ("chat.completion", MODEL)
    assert answer.json["id"].startswith("chatcmpl-")
    found = [(choice["message"]["content"], choice["finish_reason"]) for choice in answer.json["choices"]]
    assert [("to be ", "stop")] * 2 == found
    assert 4 == answer.json["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_chat_is_streamed(serving_model, path):
    *chunks, last, end = await serving_model.stream(path, **saying("to be", stream_options={"include_usage": True}))

    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "to be "
    assert "stop" == chunks[-1]["choices"][0]["finish_reason"]
    assert ([], 2, "[DONE]") == (last["choices"], last["usage"]["completion_tokens"], end)
    assert 1 == len({chunk["id"] for chunk in [*chunks, last]})


async def test_a_call_ends_its_answer(serving_model):
    answer = await serving_model.post(PATHS[0], **saying("call", tools=TOOLS))

    (choice,) = answer.json["choices"]
    assert "tool_calls" == choice["finish_reason"]
    assert {"name": "weather", "arguments": '{"a": 1}'} == choice["message"]["tool_calls"][0]["function"]


async def test_thoughts_are_told_apart_and_counted(serving_model):
    answer = await serving_model.post(PATHS[0], **saying("think"))

    message = answer.json["choices"][0]["message"]
    assert ("thought", "Hm. Yes.") == (message["content"], message["reasoning_content"])
    assert 2 == answer.json["usage"]["completion_tokens_details"]["reasoning_tokens"]


async def test_an_error_that_comes_after_the_headers_is_the_last_event(serving_model):
    *chunks, last = await serving_model.stream(PATHS[0], **saying("fail"))

    assert "fail " == chunks[-1]["choices"][0]["delta"]["content"]
    assert ("context_length_exceeded", "messages") == (last["error"]["code"], last["error"]["param"])


async def test_an_error_of_a_whole_answer_has_its_status(serving_model):
    answer = await serving_model.post(PATHS[0], **saying("fail"))
    assert (400, "context_length_exceeded") == (answer.status, answer.error["code"])


async def test_a_request_that_cannot_be_used_loads_no_model(serving_model):
    answer = await serving_model.post(PATHS[0], **saying("x", tool_choice="required"))
    assert (400, "tool_choice", []) == (answer.status, answer.error["param"], serving_model.received())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_cancels_its_request(serving_model, stream):
    async with serving_model.hung_up(PATHS[0], **saying("stall", stream=stream)):
        await until(lambda: "cancel" in serving_model.received())


async def test_many_clients_are_served_at_once(serving_model):
    texts = [f"client {at}" for at in range(20)]
    answers = await asyncio.gather(*(serving_model.post(PATHS[0], **saying(text)) for text in texts))
    assert [f"{text} " for text in texts] == [one.json["choices"][0]["message"]["content"] for one in answers]
