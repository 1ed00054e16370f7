"""The arguments of tool calls."""

import pytest

from osaurusd.inference.events import decode_arguments


def test_arguments_are_an_object():
    assert decode_arguments('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize("text", ["", '{"a": ', "[1]", '{"a":' * 5000 + "1" + "}" * 5000])
def test_unusable_arguments_are_empty(text):
    assert decode_arguments(text) == {}
