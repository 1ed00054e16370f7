"""Chat completions beyond the examples of the guide, with a real daemon and worker, and a tiny random model."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI

from tests.conftest import TINY
from tests.daemons import Daemon

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT_TOKENS = 42
"""Tokens of a prompt besides the message: the default system message and the markers of the template."""

COUNT = [{"role": "user", "content": "Count from one to fifty in words."}]


def complete(client: OpenAI, **fields):
    return client.chat.completions.create(
        **{"model": TINY, "messages": CAPITAL, "temperature": 0, "max_tokens": 12, **fields}
    )


def test_max_tokens_limits_the_output_exactly(client: OpenAI) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = client.chat.completions.create(model=TINY, messages=COUNT, **{field: 5})

        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 5


@pytest.mark.parametrize("other_stops", [[], ["nowhere"]])
def test_stop_string_ends_the_output_and_is_not_part_of_it(client: OpenAI, other_stops: list[str]) -> None:
    text = complete(client).choices[0].message.content
    # Parts of several tokens.
    stop = text[len(text) // 2 :][:6]
    reply = complete(client, stop=[*other_stops, stop] if other_stops else stop)

    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == text[: text.index(stop)]


def test_stream_has_the_same_content_as_the_whole_response(client: OpenAI) -> None:
    whole = complete(client)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert chunks[-1].choices == []
    assert whole.usage == chunks[-1].usage
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_same_seed_repeats_the_output_and_another_seed_changes_it(client: OpenAI) -> None:
    def generate(seed: int) -> str:
        reply = complete(client, messages=COUNT, temperature=1.5, seed=seed, max_tokens=12)
        return reply.choices[0].message.content

    assert generate(7) == generate(7)
    assert generate(7) != generate(8)


def test_seed_repeats_the_output_in_a_batch(client: OpenAI) -> None:
    def generate(seed: int) -> str:
        reply = complete(client, messages=CAPITAL, temperature=1.2, seed=seed, max_tokens=12)
        return reply.choices[0].message.content

    alone = generate(3)
    with ThreadPoolExecutor(4) as executor:
        batched = list(executor.map(generate, [3, 4, 5, 3]))

    assert [alone, alone] == [batched[0], batched[3]]


def test_batching_does_not_change_the_output(client: OpenAI) -> None:
    questions = ["What is the capital of France?", "Say hello.", "Name a colour.", "What is two plus two?"]

    def generate(question: str) -> str:
        return (
            complete(client, messages=[{"role": "user", "content": question}], max_tokens=10).choices[0].message.content
        )

    alone = [generate(question) for question in questions]
    with ThreadPoolExecutor(4) as executor:
        batched = list(executor.map(generate, questions))

    assert alone == batched
    assert len(set(alone)) > 1


def test_top_p_zero_is_greedy(client: OpenAI) -> None:
    assert (
        complete(client).choices[0].message.content
        == complete(client, temperature=2, top_p=0).choices[0].message.content
    )


def test_text_parts_and_the_developer_role_are_supported(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    instructions = "Be brief."
    expected = complete(client, messages=[{"role": "system", "content": instructions}, *CAPITAL])
    messages = [{"role": "developer", "content": instructions}, {"role": "user", "content": parts}]

    assert expected.choices[0].message.content == complete(client, messages=messages).choices[0].message.content


def test_prompt_over_the_context_length_is_rejected_with_both_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, messages=[{"role": "user", "content": "word " * 9000}])

    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
    assert "8192" in raised.value.message
    assert str(9000 + PROMPT_TOKENS) in raised.value.message


def test_stream_that_fails_before_its_first_chunk_has_an_error_status(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        complete(client, messages=[{"role": "user", "content": "word " * 9000}], stream=True)


def test_unknown_model_is_not_found_and_similar_names_are_suggested(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        complete(client, model="tinny")

    assert raised.value.code == "model_not_found"
    assert '"tiny"' in raised.value.message


def test_known_model_that_is_not_downloaded_is_not_found_and_the_error_has_the_command(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        complete(client, model="llama-3.2-3b-instruct")

    assert raised.value.code == "model_not_downloaded"
    assert "osaurusctl pull llama-3.2-3b-instruct" in raised.value.message


def test_model_name_ignores_case_and_the_response_has_the_api_name(client: OpenAI) -> None:
    assert complete(client, model=TINY.upper(), max_tokens=1).model == TINY
    assert client.models.retrieve(TINY.upper()).id == TINY


def test_v1_prefix_is_optional(tiny_daemon: Daemon) -> None:
    with OpenAI(base_url=f"{tiny_daemon.url}/v1", api_key="x", max_retries=0) as client:
        assert complete(client).choices[0].message.content
        assert [TINY] == [model.id for model in client.models.list()]
