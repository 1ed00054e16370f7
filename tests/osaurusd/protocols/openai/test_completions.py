"""A completion request becomes one generation request per prompt."""

import pytest

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import GenerationRequest, SamplingParams, TextPrompt, TokenPrompt

from .builders import parse_completion


def prompts(prompt, **fields):
    return [request.prompt for request in parse_completion(prompt=prompt, **fields)]


def test_minimal_request_has_openais_default_of_max_tokens():
    assert parse_completion(Defaults(max_tokens=100), prompt="Once") == [
        GenerationRequest(
            prompt=TextPrompt(text="Once"),
            sampling=SamplingParams(temperature=0.0, top_p=1.0),
            max_tokens=16,
            parse_tool_calls=False,
        )
    ]


def test_every_field_is_converted_for_each_prompt():
    requests = parse_completion(
        prompt=["a", "b"], temperature=0.5, n=2, best_of=2, max_tokens=0, stop="x", logprobs=5, echo=True
    )
    assert requests == [
        GenerationRequest(
            prompt=TextPrompt(text=text),
            sampling=SamplingParams(temperature=0.5, top_p=1.0),
            n=2,
            max_tokens=0,
            stop=["x"],
            logprobs=5,
            echo=True,
            parse_tool_calls=False,
        )
        for text in "ab"
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (None, [TextPrompt(text="")]),
        ("", [TextPrompt(text="")]),
        ("a", [TextPrompt(text="a")]),
        (["a"], [TextPrompt(text="a")]),
        (["a", ""], [TextPrompt(text="a"), TextPrompt(text="")]),
        ([1, 2], [TokenPrompt(tokens=[1, 2])]),
        ([[1, 2], [3]], [TokenPrompt(tokens=[1, 2]), TokenPrompt(tokens=[3])]),
        (["a", [1]], [TextPrompt(text="a"), TokenPrompt(tokens=[1])]),
        ([7] * 1000, [TokenPrompt(tokens=[7] * 1000)]),
    ],
)
def test_prompt_is_a_string_or_token_ids_or_a_list_of_prompts(prompt, expected):
    assert prompts(prompt) == expected


def test_suffix_applies_to_every_text():
    assert prompts(["a", "b"], suffix="z") == [TextPrompt(text="a", suffix="z"), TextPrompt(text="b", suffix="z")]
    assert prompts("a", suffix="") == [TextPrompt(text="a")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [[1], 2]}, "prompt[1]"),
        ({"prompt": [1, 2], "suffix": "a"}, "suffix"),
        ({"prompt": ["a", [1]], "suffix": "a"}, "suffix"),
        ({"prompt": "a", "suffix": "b", "echo": True}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 0, "echo": False}, "max_tokens"),
    ],
)
def test_invalid_field_is_rejected(fields, param):
    with pytest.raises(InvalidRequest) as raised:
        parse_completion(**fields)
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == param
    assert raised.value.message.startswith(f"`{param}`: ")


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"best_of": 1, "n": 2}, {"best_of": 0}, {"best_of": 10**30}])
def test_best_of_is_rejected(fields):
    with pytest.raises(UnsupportedParameter) as raised:
        parse_completion(prompt="a", **fields)
    assert raised.value.param == "best_of"


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": None, "n": 3}, {"best_of": 3, "n": 3}])
def test_best_of_equal_to_n_is_accepted(fields):
    (request,) = parse_completion(prompt="a", **fields)
    assert request.n == (fields.get("n") or 1)
