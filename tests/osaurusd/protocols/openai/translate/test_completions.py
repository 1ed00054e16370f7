"""From a legacy completion request to the worker's orders."""

import pytest

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import SamplingParams, TextPrompt, TokenPrompt
from osaurusd.rpc import messages

from .asking import completion_orders


def prompts(prompt, **fields):
    return [order.prompt for order in completion_orders(prompt=prompt, **fields)]


def test_a_plain_request_is_an_order_with_openais_default_of_tokens():
    assert completion_orders(defaults=Defaults(max_tokens=100), prompt="Once") == [
        messages.Generate(
            id=0,
            prompt=TextPrompt(text="Once"),
            sampling=SamplingParams(temperature=1.0, top_p=1.0),
            max_tokens=16,
            call_tools=False,
        )
    ]


def test_a_full_request_is_all_that_it_says_for_each_prompt():
    found = completion_orders(
        prompt=["a", "b"], temperature=0.5, n=2, best_of=2, max_tokens=0, stop="x", logprobs=5, echo=True
    )
    assert found == [
        messages.Generate(
            id=0,
            prompt=TextPrompt(text=text),
            sampling=SamplingParams(temperature=0.5, top_p=1.0),
            n=2,
            max_tokens=0,
            stop=["x"],
            logprobs=5,
            echo=True,
            call_tools=False,
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
    ],
)
def test_a_prompt_has_several_forms(prompt, expected):
    assert expected == prompts(prompt)


def test_a_suffix_goes_with_every_text():
    assert [TextPrompt(text="a", suffix="z"), TextPrompt(text="b", suffix="z")] == prompts(["a", "b"], suffix="z")
    assert [TextPrompt(text="a")] == prompts("a", suffix="")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [[1]] * 129}, "prompt"),
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
def test_what_cannot_be_used_is_refused(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        completion_orders(**fields)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: ")


def test_a_long_list_of_tokens_is_one_prompt():
    assert [TokenPrompt(tokens=[7] * 1000)] == prompts([7] * 1000)


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"best_of": 1, "n": 2}, {"best_of": 0}, {"best_of": 10**30}])
def test_choosing_the_best_of_more_is_refused_by_name(fields):
    with pytest.raises(UnsupportedParameter) as refusal:
        completion_orders(prompt="a", **fields)
    assert refusal.value.param == "best_of"


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": None, "n": 3}, {"best_of": 3, "n": 3}])
def test_choosing_the_best_of_as_many_is_no_choice(fields):
    (order,) = completion_orders(prompt="a", **fields)
    assert (fields.get("n") or 1) == order.n
