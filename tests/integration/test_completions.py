"""Legacy completions, with a real daemon and worker, a tiny random model, and the official client."""

import itertools
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from tests.conftest import TINY
from tests.models import TINY_VOCABULARY

FRANCE = "The capital of France is"


def complete(client: OpenAI, prompt, **fields):
    return client.completions.create(**{"model": TINY, "prompt": prompt, "temperature": 0, "max_tokens": 6, **fields})


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))


def test_text_is_continued_without_a_chat_template(client: OpenAI, tokenizer: Tokenizer) -> None:
    reply = complete(client, FRANCE)

    assert reply.choices[0].text
    assert reply.choices[0].finish_reason == "length"
    assert (len(tokenizer.encode(FRANCE).ids), 6) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)


def test_choices_of_several_texts_or_token_lists_are_numbered_consecutively(client: OpenAI, tokenizer) -> None:
    texts = [FRANCE, "One, two, three,"]
    tokens = [tokenizer.encode(text).ids for text in texts]
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
    count = len(tokenizer.encode(FRANCE).ids)
    assert reply.choices[0].text.startswith(FRANCE)
    assert reply.choices[0].text == "".join(logprobs.tokens)
    assert [None] + [True] * (count + 1) == [None] + [value < 0 for value in logprobs.token_logprobs[1:]]
    assert logprobs.token_logprobs[0] is None
    assert all(3 <= len(top) <= 4 for top in logprobs.top_logprobs[1:])
    assert list(itertools.accumulate(map(len, logprobs.tokens[:-1]), initial=0)) == logprobs.text_offset
    assert FRANCE == scored.choices[0].text
    assert logprobs.token_logprobs[1:count] == pytest.approx(scored.choices[0].logprobs.token_logprobs[1:], abs=1e-3)


def test_suffix_is_rejected_for_a_model_without_fill_in_the_middle_tokens(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, "def f():", suffix="return 1")

    assert ("unsupported_parameter", "suffix") == (raised.value.code, raised.value.param)


@pytest.mark.parametrize(
    ("prompt", "param"), [([TINY_VOCABULARY], "prompt"), ([-1], "prompt[0]"), ([[1, 2], [10**9]], "prompt[1]")]
)
def test_token_outside_the_vocabulary_is_rejected(client: OpenAI, prompt, param) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, prompt)

    assert raised.value.param == param
    assert complete(client, FRANCE).choices[0].text


@pytest.mark.parametrize(
    ("prompt", "param"), [("word " * 9000, "prompt"), (["a", "b", "c", "word " * 9000], "prompt[3]")]
)
def test_prompt_over_the_context_length_names_the_prompt(client: OpenAI, prompt, param) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, prompt)

    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", param)
    assert raised.value.body["message"].startswith(f"`{param}`: ")
