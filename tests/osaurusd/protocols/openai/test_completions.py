"""`POST /completions` from the socket to a worker and back."""

import pytest

from tests.osaurusd.pool.asking import until

from .conftest import MODEL

PATHS = ["/completions", "/v1/completions"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_prompt_is_continued(serving_model, path):
    answer = await serving_model.post(path, prompt="to be")

    assert answer.status == 200
    assert ("text_completion", MODEL) == (answer.json["object"], answer.json["model"])
    assert answer.json["id"].startswith("cmpl-")
    assert [{"index": 0, "text": "to be ", "logprobs": None, "finish_reason": "stop"}] == answer.json["choices"]


@pytest.mark.parametrize(
    ("prompt", "texts", "usage"),
    [
        ([7, 8], ["7 8 ", "7 8 "], (1, 4)),
        (["a", "b c"], ["a ", "a ", "b c ", "b c "], (2, 6)),
        ([[7], [8]], ["7 ", "7 ", "8 ", "8 "], (2, 4)),
    ],
)
async def test_answers_are_numbered_by_prompt_and_usage_is_summed(serving_model, prompt, texts, usage):
    answer = await serving_model.post(PATHS[0], prompt=prompt, n=2)

    found = [(choice["index"], choice["text"]) for choice in answer.json["choices"]]
    assert [*enumerate(texts)] == found
    assert usage == (answer.json["usage"]["prompt_tokens"], answer.json["usage"]["completion_tokens"])


async def test_as_many_prompts_as_are_allowed_are_all_answered(serving_model):
    prompts = [f"prompt {at}" for at in range(128)]
    answer = await serving_model.post(PATHS[0], prompt=prompts)
    assert [f"{prompt} " for prompt in prompts] == [choice["text"] for choice in answer.json["choices"]]
    assert (128, 256) == (answer.json["usage"]["prompt_tokens"], answer.json["usage"]["completion_tokens"])


async def test_several_prompts_are_streamed_side_by_side(serving_model):
    *chunks, last, end = await serving_model.stream(
        PATHS[0], prompt=["a b", "c d"], stream_options={"include_usage": True}
    )

    choices = [chunk["choices"][0] for chunk in chunks]
    texts = ["".join(choice["text"] for choice in choices if choice["index"] == index) for index in (0, 1)]
    assert ["a b ", "c d "] == texts
    assert [0, 1] == sorted(choice["index"] for choice in choices if choice["finish_reason"] == "stop")
    assert (2, 4, "[DONE]") == (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"], end)


async def test_an_echo_comes_first_with_nothing_known_of_its_first_token(serving_model):
    answer = await serving_model.post(PATHS[0], prompt="ab", echo=True, logprobs=1, max_tokens=1)

    (choice,) = answer.json["choices"]
    assert "abab " == choice["text"]
    assert ([None, -0.5], [0, 2]) == (choice["logprobs"]["token_logprobs"], choice["logprobs"]["text_offset"])


async def test_sixteen_tokens_are_the_default(serving_model):
    answer = await serving_model.post(PATHS[0], prompt="x " * 20)
    assert ("length", 16) == (answer.json["choices"][0]["finish_reason"], answer.json["usage"]["completion_tokens"])


async def test_the_failure_of_one_prompt_is_the_requests_and_cancels_the_others(serving_model):
    answer = await serving_model.post(PATHS[0], prompt=["stall", "fail", "stall"])

    assert (400, "context_length_exceeded") == (answer.status, answer.error["code"])
    await until(lambda: serving_model.received().count("cancel") == 2)


async def test_a_client_that_hangs_up_cancels_all_its_prompts(serving_model):
    async with serving_model.hung_up(PATHS[0], prompt=["stall"] * 3):
        await until(lambda: serving_model.received().count("cancel") == 3)
