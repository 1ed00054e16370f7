"""The request type knows every field of OpenAI's legacy completions, one way or the other."""

import msgspec
import pytest
from openai.types.completion_create_params import CompletionCreateParamsStreaming

from osaurusd.errors import InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai.schema.completions import CompletionRequest


def decode(**fields):
    return decode_json(msgspec.json.encode(fields), CompletionRequest)


def test_every_field_of_openais_client_is_read_but_for_who_asks():
    theirs = set(CompletionCreateParamsStreaming.__annotations__)
    for base in CompletionCreateParamsStreaming.__orig_bases__:
        theirs |= set(getattr(base, "__annotations__", ()))
    assert {"prompt", "stream", "echo"} <= theirs
    assert {"user"} == theirs - set(CompletionRequest.__struct_fields__)


@pytest.mark.parametrize(
    "prompt", ["", "a", [], ["a", "b"], [1, 2], [[1, 2], [3]], [2**31 - 1], None], ids=lambda prompt: repr(prompt)
)
def test_a_prompt_has_several_forms(prompt):
    assert prompt == decode(prompt=prompt).prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 1}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1, 2**31]}, "prompt[1]"),
        ({"prompt": [10**30]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a", None]}, "prompt[1]"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [[1, [2]]]}, "prompt[0][1]"),
        ({"suffix": 1}, "suffix"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**53 + 1}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"best_of": "1"}, "best_of"),
    ],
)
def test_what_is_wrong_or_out_of_range_is_named(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        decode(**fields)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
