"""Requests over HTTP, from the socket to a worker and back."""

import asyncio

import pytest

from tests.osaurusd.pool.helpers import until

from ..helpers import MODEL

CHAT_PATHS = ["/chat/completions", "/v1/chat/completions"]
COMPLETION_PATHS = ["/completions", "/v1/completions"]
CHAT, COMPLETIONS = CHAT_PATHS[0], COMPLETION_PATHS[0]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def messages(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("path", CHAT_PATHS)
async def test_chat_is_completed(served_model, path):
    response = await served_model.post(path, messages=messages("to be"), n=2)

    assert response.status == 200
    assert (response.json["object"], response.json["model"]) == ("chat.completion", MODEL)
    assert response.json["id"].startswith("chatcmpl-")
    choices = [(choice["message"]["content"], choice["finish_reason"]) for choice in response.json["choices"]]
    assert choices == [("to be ", "stop")] * 2
    assert response.json["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("path", CHAT_PATHS)
async def test_chat_is_streamed(served_model, path):
    *chunks, last, end = await served_model.stream(
        path, messages=messages("to be"), stream_options={"include_usage": True}
    )

    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "to be "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (last["choices"], last["usage"]["completion_tokens"], end) == ([], 2, "[DONE]")
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


async def test_tool_call_ends_a_choice(served_model):
    response = await served_model.post(CHAT, messages=messages("call"), tools=TOOLS)

    (choice,) = response.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"a": 1}'}


async def test_reasoning_is_separated_and_counted(served_model):
    response = await served_model.post(CHAT, messages=messages("think"))

    message = response.json["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("thought", "Hm. Yes.")
    assert response.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


async def test_error_in_the_middle_of_a_stream_is_its_last_event(served_model):
    *chunks, last = await served_model.stream(CHAT, messages=messages("fail"))

    assert chunks[-1]["choices"][0]["delta"]["content"] == "fail "
    assert (last["error"]["code"], last["error"]["param"]) == ("context_length_exceeded", "messages")
    assert last["error"]["message"].startswith("`messages`: ")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": messages("fail")}, "messages"),
        (COMPLETIONS, {"prompt": "fail"}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", "b", "c", "fail"]}, "prompt[3]"),
    ],
)
async def test_error_of_the_worker_has_its_status_and_the_field_of_the_endpoint(served_model, path, fields, param):
    response = await served_model.post(path, **fields)
    assert (response.status, response.error["code"]) == (400, "context_length_exceeded")
    assert response.error["param"] == param
    assert response.error["message"].startswith(f"`{param}`: ")


async def test_invalid_request_loads_no_model(served_model):
    response = await served_model.post(CHAT, messages=messages("x"), tool_choice="required")
    assert (response.status, response.error["param"]) == (400, "tool_choice")
    response = await served_model.post(CHAT, messages=messages("x"), n=9)
    assert (response.status, response.error["param"]) == (400, "n")
    assert served_model.worker_frames() == []


@pytest.mark.parametrize("fields", [{"model": None}, {"model": ""}])
async def test_model_may_be_omitted_if_there_is_only_one(served_model, fields):
    response = await served_model.post(CHAT, messages=messages("x"), **fields)
    assert (response.status, response.json["model"]) == (200, MODEL)


async def test_half_of_a_surrogate_pair_becomes_a_replacement_character(served_model):
    response = await served_model.post(CHAT, messages=messages("cut \ud83d \ud83d\ude00"))
    assert response.json["choices"][0]["message"]["content"] == "cut \ufffd \U0001f600 "


async def test_unknown_model_is_not_found(served_model):
    response = await served_model.post(COMPLETIONS, prompt="x", model="nonsense")
    assert (response.status, response.error["code"], response.error["param"]) == (404, "model_not_found", "model")


async def test_too_many_prompts_are_rejected(served_model):
    response = await served_model.post(COMPLETIONS, prompt=["a"] * 129)
    assert (response.status, response.error["param"]) == (400, "prompt")
    assert response.error["message"] == "`prompt`: at most 128 prompts, not 129 (`input.max_prompts`)"


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnected_client_cancels_its_request(served_model, stream):
    await served_model.disconnect_from(CHAT, messages=messages("stall"), stream=stream)
    await until(lambda: "cancel" in served_model.worker_frames())


async def test_disconnected_client_cancels_all_of_its_prompts(served_model):
    await served_model.disconnect_from(COMPLETIONS, prompt=["stall"] * 3)
    await until(lambda: served_model.worker_frames().count("cancel") == 3)


async def test_many_clients_are_served_concurrently(served_model):
    texts = [f"client {number}" for number in range(20)]
    responses = await asyncio.gather(*(served_model.post(CHAT, messages=messages(text)) for text in texts))
    contents = [response.json["choices"][0]["message"]["content"] for response in responses]
    assert contents == [f"{text} " for text in texts]


@pytest.mark.parametrize("path", COMPLETION_PATHS)
async def test_prompt_is_continued(served_model, path):
    response = await served_model.post(path, prompt="to be")

    assert response.status == 200
    assert (response.json["object"], response.json["model"]) == ("text_completion", MODEL)
    assert response.json["id"].startswith("cmpl-")
    assert response.json["choices"] == [{"index": 0, "text": "to be ", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize(
    ("prompt", "texts", "usage"),
    [
        ([7, 8], ["7 8 ", "7 8 "], (1, 4)),
        (["a", "b c"], ["a ", "a ", "b c ", "b c "], (2, 6)),
        ([[7], [8]], ["7 ", "7 ", "8 ", "8 "], (2, 4)),
    ],
)
async def test_choices_are_numbered_by_prompt_and_usage_is_summed(served_model, prompt, texts, usage):
    response = await served_model.post(COMPLETIONS, prompt=prompt, n=2)

    choices = [(choice["index"], choice["text"]) for choice in response.json["choices"]]
    assert choices == [*enumerate(texts)]
    assert (response.json["usage"]["prompt_tokens"], response.json["usage"]["completion_tokens"]) == usage


async def test_the_maximum_number_of_prompts_is_answered(served_model):
    prompts = [f"prompt {number}" for number in range(128)]
    response = await served_model.post(COMPLETIONS, prompt=prompts)
    assert [choice["text"] for choice in response.json["choices"]] == [f"{prompt} " for prompt in prompts]
    assert (response.json["usage"]["prompt_tokens"], response.json["usage"]["completion_tokens"]) == (128, 256)


async def test_several_prompts_are_streamed_concurrently(served_model):
    *chunks, last, end = await served_model.stream(
        COMPLETIONS, prompt=["a b", "c d"], stream_options={"include_usage": True}
    )

    choices = [chunk["choices"][0] for chunk in chunks]
    texts = ["".join(choice["text"] for choice in choices if choice["index"] == index) for index in (0, 1)]
    assert texts == ["a b ", "c d "]
    assert sorted(choice["index"] for choice in choices if choice["finish_reason"] == "stop") == [0, 1]
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"], end) == (2, 4, "[DONE]")


async def test_echo_starts_with_the_prompt_whose_first_token_has_no_logprob(served_model):
    response = await served_model.post(COMPLETIONS, prompt="ab", echo=True, logprobs=1, max_tokens=1)

    (choice,) = response.json["choices"]
    assert choice["text"] == "abab "
    assert (choice["logprobs"]["token_logprobs"], choice["logprobs"]["text_offset"]) == ([None, -0.5], [0, 2])


async def test_completion_has_sixteen_tokens_by_default(served_model):
    response = await served_model.post(COMPLETIONS, prompt="x " * 20)
    assert response.json["choices"][0]["finish_reason"] == "length"
    assert response.json["usage"]["completion_tokens"] == 16


async def test_failure_of_one_prompt_cancels_the_others(served_model):
    response = await served_model.post(COMPLETIONS, prompt=["stall", "fail", "stall"])

    assert (response.status, response.error["code"]) == (400, "context_length_exceeded")
    await until(lambda: served_model.worker_frames().count("cancel") == 2)
