"""Halves of surrogate pairs in JSON text become U+FFFD, and nothing else changes."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurusd.json_text import replace_lone_surrogates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r'"\ud83d"', "\ufffd"),
        (r'"\uDE00"', "\ufffd"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\ud83d\ud83d\ude00\ude00"', "\ufffd\U0001f600\ufffd"),
        (r'"\ud83d\u0041"', "\ufffdA"),
        (r'"\\ud83d"', r"\ud83d"),
        (r'"\\\ud83d"', "\\\ufffd"),
        (r'"\\ud83d\ude00"', "\\ud83d\ufffd"),
        (r'"\n\ud83d\""', '\n\ufffd"'),
    ],
)
def test_half_of_a_pair_is_replaced_and_an_escaped_backslash_is_respected(text, expected):
    assert json.loads(replace_lone_surrogates(text.encode())) == expected


def test_half_of_a_pair_that_is_encoded_is_replaced():
    text = '"a\ud83db"'.encode(errors="surrogatepass")
    assert json.loads(replace_lone_surrogates(text)) == "a\ufffdb"


@given(st.text(st.sampled_from('\\u"dD83e0\n\ud83d\ude00\U0001f600')), st.booleans())
def test_any_text_becomes_valid_and_keeps_everything_else(text, escape):
    encoded = json.dumps(text, ensure_ascii=escape).encode(errors="surrogatepass")
    # Pairs in an escaped text are characters.
    expected = json.loads(json.dumps(text)) if escape else text
    assert json.loads(replace_lone_surrogates(encoded)) == re.sub("[\ud800-\udfff]", "\ufffd", expected)
