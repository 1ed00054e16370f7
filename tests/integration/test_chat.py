"""Chat completions beyond the guide, against the real daemon, worker and model."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI

from tests.conftest import SMOLLM
from tests.daemons import Daemon

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = [{"role": "user", "content": "Count from one to fifty in words."}]


def ask(client: OpenAI, **fields):
    return client.chat.completions.create(**{"model": SMOLLM, "messages": CAPITAL, "temperature": 0, **fields})


def test_max_tokens_is_exact_and_told_as_length(client: OpenAI) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = ask(client, messages=COUNT, **{field: 5})

        assert "length" == reply.choices[0].finish_reason
        assert 5 == reply.usage.completion_tokens


def test_usage_counts_the_prompt_as_the_tokenizer_does(client: OpenAI, smollm_folder) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415  a second that only this test needs

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    prompt = tokenizer.apply_chat_template(CAPITAL, add_generation_prompt=True, return_dict=False)
    reply = ask(client)

    assert len(prompt) == reply.usage.prompt_tokens
    answer = tokenizer.encode(reply.choices[0].message.content, add_special_tokens=False)
    assert len(answer) == reply.usage.completion_tokens


@pytest.mark.parametrize("stop", ["Paris", ["nowhere", "Paris"], [" is Par"]])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: OpenAI, stop: object) -> None:
    reply = ask(client, stop=stop)

    assert "stop" == reply.choices[0].finish_reason
    assert "The capital of France" in reply.choices[0].message.content
    assert "Par" not in reply.choices[0].message.content


def test_a_streamed_answer_is_the_whole_answer(client: OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert [] == chunks[-1].choices
    assert whole.usage == chunks[-1].usage
    assert "assistant" == chunks[0].choices[0].delta.role
    assert "stop" == chunks[-2].choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_seed_repeats_an_answer_and_another_seed_does_not(client: OpenAI) -> None:
    def answer(seed: int) -> str:
        reply = ask(client, messages=COUNT, temperature=1.5, seed=seed, max_tokens=12)
        return reply.choices[0].message.content

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)


def test_a_seed_repeats_an_answer_beside_other_requests(client: OpenAI) -> None:
    def answer(seed: int) -> str:
        reply = ask(client, messages=CAPITAL, temperature=1.2, seed=seed, max_tokens=12)
        return reply.choices[0].message.content

    alone = answer(3)
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(answer, [3, 4, 5, 3]))

    assert [alone, alone] == [together[0], together[3]]


def test_concurrent_requests_get_the_answers_that_they_get_alone(client: OpenAI) -> None:
    questions = ["What is the capital of France?", "Say hello.", "Name a colour.", "What is two plus two?"]

    def answer(question: str) -> str:
        return ask(client, messages=[{"role": "user", "content": question}], max_tokens=10).choices[0].message.content

    alone = [answer(question) for question in questions]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(answer, questions))

    assert alone == together
    assert 4 == len(set(alone))


def test_top_p_zero_is_greedy(client: OpenAI) -> None:
    assert ask(client).choices[0].message.content == ask(client, temperature=2, top_p=0).choices[0].message.content


def test_text_parts_and_the_developer_role_are_taken(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    system = {"role": "developer", "content": "You are a helpful assistant."}
    messages = [system, {"role": "user", "content": parts}]

    assert "Paris" in ask(client, messages=messages).choices[0].message.content


def test_a_prompt_over_the_context_length_is_refused_with_both_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, messages=[{"role": "user", "content": "word " * 9000}])

    assert "context_length_exceeded" == refusal.value.code
    assert "8192" in refusal.value.message
    assert "9031" in refusal.value.message


def test_a_stream_that_fails_at_once_has_the_true_status(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, messages=[{"role": "user", "content": "word " * 9000}], stream=True)


def test_an_unknown_model_is_a_404_that_names_near_ones(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        ask(client, model="smolm2-135m-instruct")

    assert "model_not_found" == refusal.value.code
    assert SMOLLM in refusal.value.message


def test_a_known_model_that_is_not_here_is_a_404_that_says_how_to_get_it(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        ask(client, model="llama-3.2-3b-instruct")

    assert "model_not_downloaded" == refusal.value.code
    assert "`osaurusctl pull llama-3.2-3b-instruct`" in refusal.value.message


def test_any_case_of_the_name_finds_the_model_and_the_answer_has_the_api_name(client: OpenAI) -> None:
    assert SMOLLM == ask(client, model=SMOLLM.upper(), max_tokens=1).model
    assert SMOLLM == client.models.retrieve(SMOLLM.upper()).id


def test_the_v1_prefix_changes_nothing(smollm_daemon: Daemon) -> None:
    with OpenAI(base_url=f"{smollm_daemon.url}/v1", api_key="x", max_retries=0) as client:
        assert "Paris" in ask(client).choices[0].message.content
        assert [SMOLLM] == [model.id for model in client.models.list()]
