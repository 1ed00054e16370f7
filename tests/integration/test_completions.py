"""The legacy endpoint: the real daemon, worker and model, and the official client."""

import openai
import pytest
from openai import OpenAI

from tests.conftest import SMOLLM

FRANCE = "The capital of France is"


def complete(client: OpenAI, prompt, **fields):
    return client.completions.create(**{"model": SMOLLM, "prompt": prompt, "temperature": 0, "max_tokens": 6, **fields})


@pytest.fixture(scope="module")
def tokenizer(smollm_folder):
    from transformers import AutoTokenizer  # noqa: PLC0415  a second that only these tests need

    return AutoTokenizer.from_pretrained(smollm_folder)


def test_text_is_continued_as_it_stands(client: OpenAI) -> None:
    reply = complete(client, FRANCE)

    assert reply.choices[0].text.startswith(" Paris")
    assert "length" == reply.choices[0].finish_reason
    assert 6 == reply.usage.completion_tokens


def test_an_exact_continuation_of_an_earlier_prompt_is_answered(client: OpenAI) -> None:
    first = complete(client, FRANCE, max_tokens=1)
    again = complete(client, FRANCE + first.choices[0].text, max_tokens=5)

    assert complete(client, FRANCE).choices[0].text == first.choices[0].text + again.choices[0].text


def test_lists_of_texts_and_tokens_are_numbered_through(client: OpenAI, tokenizer) -> None:
    texts = [FRANCE, "One, two, three,"]
    tokens = [tokenizer.encode(text) for text in texts]
    alone = [complete(client, text).choices[0].text for text in texts]

    for prompt in (texts, tokens):
        reply = complete(client, prompt, n=2)
        assert [0, 1, 2, 3] == [choice.index for choice in reply.choices]
        assert [alone[0], alone[0], alone[1], alone[1]] == [choice.text for choice in reply.choices]
        assert sum(map(len, tokens)) == reply.usage.prompt_tokens
    assert alone[0] == complete(client, tokens[0]).choices[0].text


def test_a_stream_is_the_whole(client: OpenAI) -> None:
    whole = complete(client, [FRANCE, "One, two,"])
    texts = {0: "", 1: ""}
    for chunk in complete(client, [FRANCE, "One, two,"], stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert [choice.text for choice in whole.choices] == list(texts.values())


def test_an_echoed_prompt_is_scored_token_by_token(client: OpenAI, tokenizer) -> None:
    reply = complete(client, FRANCE, echo=True, logprobs=3, max_tokens=2)
    scored = complete(client, FRANCE, echo=True, logprobs=0, max_tokens=0)

    logprobs = reply.choices[0].logprobs
    count = len(tokenizer.encode(FRANCE))
    assert reply.choices[0].text.startswith(FRANCE + " Paris")
    assert reply.choices[0].text == "".join(logprobs.tokens)
    assert [None] + [True] * (count + 1) == [None] + [value < 0 for value in logprobs.token_logprobs[1:]]
    assert logprobs.token_logprobs[0] is None
    assert all(3 <= len(likeliest) <= 4 for likeliest in logprobs.top_logprobs[1:])
    assert [reply.choices[0].text.index(token) for token in (" France", " Paris")] == [
        logprobs.text_offset[logprobs.tokens.index(token)] for token in (" France", " Paris")
    ]
    assert FRANCE == scored.choices[0].text
    assert logprobs.token_logprobs[1:count] == pytest.approx(scored.choices[0].logprobs.token_logprobs[1:], abs=1e-3)


def test_a_prompt_is_scored_as_the_model_scores_its_own_words(client: OpenAI) -> None:
    said = complete(client, FRANCE, logprobs=0)
    echoed = complete(client, FRANCE + said.choices[0].text, echo=True, logprobs=0, max_tokens=0)

    own = said.choices[0].logprobs.token_logprobs
    assert own == pytest.approx(echoed.choices[0].logprobs.token_logprobs[-len(own) :], abs=1e-3)


def test_a_model_without_the_tokens_for_it_cannot_fill_in(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        complete(client, "def f():", suffix="return 1")

    assert ("unsupported_parameter", "suffix") == (refusal.value.code, refusal.value.param)


@pytest.mark.parametrize("prompt", [[49152], [-1], [[1, 2], [10**9]]])
def test_tokens_that_are_not_in_the_vocabulary_are_refused(client: OpenAI, prompt) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        complete(client, prompt)

    assert "prompt" in refusal.value.param
    assert complete(client, FRANCE).choices[0].text.startswith(" Paris")
