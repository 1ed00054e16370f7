"""The corners of log-probabilities."""

import pytest

from osaurusd.inference.events import TokenLogprob
from osaurusd.protocols.openai.render.logprobs import UNLIKELY, chat_logprobs, legacy_logprobs

from .events import scored


def test_no_tokens_are_null():
    assert chat_logprobs([]) is None
    assert legacy_logprobs([], 0) is None


def test_nothing_is_known_of_the_first_token_of_a_prompt():
    found = legacy_logprobs([scored("Once", None), scored(" upon", -1.0)], 0)
    assert ([None, -1.0], [None, {" upon": -1.0}]) == (found.token_logprobs, found.top_logprobs)


@pytest.mark.parametrize("logprob", [float("-inf"), -1e9])
def test_what_is_as_good_as_impossible_is_a_number_all_the_same(logprob):
    tokens = [scored("a", logprob, ("b", logprob))]
    (token,) = chat_logprobs(tokens).content
    legacy = legacy_logprobs(tokens, 0)

    assert [UNLIKELY] * 2 == [token.logprob, token.top_logprobs[0].logprob]
    assert ([UNLIKELY], [{"a": UNLIKELY, "b": UNLIKELY}]) == (legacy.token_logprobs, legacy.top_logprobs)


def test_of_tokens_with_the_same_text_the_likeliest_counts():
    found = legacy_logprobs([scored("\ufffd", -0.1, ("\ufffd", -0.1), ("\ufffd", -5.0))], 0)
    assert [{"\ufffd": -0.1}] == found.top_logprobs


def test_a_character_of_several_tokens_counts_where_it_ends():
    halves = [TokenLogprob(text="\ufffd", bytes=[byte], logprob=-1.0) for byte in "é".encode()]
    assert [3, 3, 4] == legacy_logprobs([*halves, scored("x")], 3).text_offset
