"""Legacy completions, with a real daemon, worker and model, and the official client."""

import openai
import pytest
from openai import OpenAI

from tests.conftest import SMOLLM

FRANCE = "The capital of France is"


def complete(client: OpenAI, prompt, **fields):
    return client.completions.create(**{"model": SMOLLM, "prompt": prompt, "temperature": 0, "max_tokens": 6, **fields})


@pytest.fixture(scope="module")
def tokenizer(smollm_folder):
    from transformers import AutoTokenizer  # noqa: PLC0415  takes a second, and only these tests need it

    return AutoTokenizer.from_pretrained(smollm_folder)


def test_text_is_continued_without_a_chat_template(client: OpenAI) -> None:
    reply = complete(client, FRANCE)

    assert reply.choices[0].text.startswith(" Paris")
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 6


def test_continuation_of_an_earlier_prompt_has_the_same_output(client: OpenAI) -> None:
    first = complete(client, FRANCE, max_tokens=1)
    again = complete(client, FRANCE + first.choices[0].text, max_tokens=5)

    assert complete(client, FRANCE).choices[0].text == first.choices[0].text + again.choices[0].text


def test_choices_of_several_texts_or_token_lists_are_numbered_consecutively(client: OpenAI, tokenizer) -> None:
    texts = [FRANCE, "One, two, three,"]
    tokens = [tokenizer.encode(text) for text in texts]
    alone = [complete(client, text).choices[0].text for text in texts]

    for prompt in (texts, tokens):
        reply = complete(client, prompt, n=2)
        assert [0, 1, 2, 3] == [choice.index for choice in reply.choices]
        assert [alone[0], alone[0], alone[1], alone[1]] == [choice.text for choice in reply.choices]
        assert sum(map(len, tokens)) == reply.usage.prompt_tokens
    assert alone[0] == complete(client, tokens[0]).choices[0].text


def test_stream_has_the_same_text_as_the_whole_response(client: OpenAI) -> None:
    whole = complete(client, [FRANCE, "One, two,"])
    texts = {0: "", 1: ""}
    for chunk in complete(client, [FRANCE, "One, two,"], stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert [choice.text for choice in whole.choices] == list(texts.values())


def test_echoed_prompt_has_a_logprob_for_each_token(client: OpenAI, tokenizer) -> None:
    reply = complete(client, FRANCE, echo=True, logprobs=3, max_tokens=2)
    scored = complete(client, FRANCE, echo=True, logprobs=0, max_tokens=0)

    logprobs = reply.choices[0].logprobs
    count = len(tokenizer.encode(FRANCE))
    assert reply.choices[0].text.startswith(FRANCE + " Paris")
    assert reply.choices[0].text == "".join(logprobs.tokens)
    assert [None] + [True] * (count + 1) == [None] + [value < 0 for value in logprobs.token_logprobs[1:]]
    assert logprobs.token_logprobs[0] is None
    assert all(3 <= len(top) <= 4 for top in logprobs.top_logprobs[1:])
    assert [reply.choices[0].text.index(token) for token in (" France", " Paris")] == [
        logprobs.text_offset[logprobs.tokens.index(token)] for token in (" France", " Paris")
    ]
    assert FRANCE == scored.choices[0].text
    assert logprobs.token_logprobs[1:count] == pytest.approx(scored.choices[0].logprobs.token_logprobs[1:], abs=1e-3)


def test_logprobs_of_a_prompt_equal_those_of_the_same_output(client: OpenAI) -> None:
    generated = complete(client, FRANCE, logprobs=0)
    echoed = complete(client, FRANCE + generated.choices[0].text, echo=True, logprobs=0, max_tokens=0)

    logprobs = generated.choices[0].logprobs.token_logprobs
    assert logprobs == pytest.approx(echoed.choices[0].logprobs.token_logprobs[-len(logprobs) :], abs=1e-3)


def test_suffix_is_rejected_for_a_model_without_fill_in_the_middle_tokens(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, "def f():", suffix="return 1")

    assert ("unsupported_parameter", "suffix") == (raised.value.code, raised.value.param)


@pytest.mark.parametrize(
    ("prompt", "param"), [([49152], "prompt"), ([-1], "prompt[0]"), ([[1, 2], [10**9]], "prompt[1]")]
)
def test_token_outside_the_vocabulary_is_rejected(client: OpenAI, prompt, param) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, prompt)

    assert raised.value.param == param
    assert complete(client, FRANCE).choices[0].text.startswith(" Paris")


@pytest.mark.parametrize(
    ("prompt", "param"), [("word " * 9000, "prompt"), (["a", "b", "c", "word " * 9000], "prompt[3]")]
)
def test_prompt_over_the_context_length_names_the_prompt(client: OpenAI, prompt, param) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, prompt)

    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", param)
    assert raised.value.body["message"].startswith(f"`{param}`: ")
