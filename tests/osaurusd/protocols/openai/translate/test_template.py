"""What a chat template gets besides messages and tools."""

import inspect

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from osaurusd.errors import InvalidRequest
from osaurusd.protocols.openai.translate.template import RESERVED

from .asking import chat_order, nested


def template(**fields):
    return chat_order(**fields).prompt.template


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "a": [1, None]}},
            {"enable_thinking": False, "a": [1, None]},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"}},
            {"reasoning_effort": "low", "enable_thinking": True},
        ),
        ({"chat_template_kwargs": {}}, {}),
    ],
)
def test_variables_are_passed_on_and_the_more_exact_field_wins(fields, expected):
    assert expected == template(**fields)


@pytest.mark.parametrize("effort", ["", "High", "ultra"])
def test_an_unknown_effort_is_refused_naming_those_there_are(effort):
    with pytest.raises(InvalidRequest, match="`minimal`") as refusal:
        template(reasoning_effort=effort)
    assert refusal.value.param == "reasoning_effort"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_is_no_variable_is_refused_by_name(name):
    with pytest.raises(InvalidRequest) as refusal:
        template(chat_template_kwargs={"a": 1, name: None})
    assert f"chat_template_kwargs.{name}" == refusal.value.param


@pytest.mark.parametrize("function", [PreTrainedTokenizerBase.apply_chat_template, render_jinja_template])
def test_every_parameter_of_the_function_that_renders_is_reserved(function):
    named = {
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert set() == named - RESERVED


def test_variables_may_not_be_nested_too_deeply():
    with pytest.raises(InvalidRequest) as refusal:
        template(chat_template_kwargs=nested(101))
    assert refusal.value.param == "chat_template_kwargs"
