"""A request overrides the model's settings, and those override the configuration."""

import pytest

from osaurusd.config import Config, Defaults, Input, Structured
from osaurusd.inference.defaults import MIN_TOP_P, RequestDefaults
from osaurusd.inference.request import SamplingParams
from osaurusd.models.record import GenerationDefaults


def from_config(model=None, **config):
    return RequestDefaults.from_config(model or GenerationDefaults(), Config(**config))


def sampling(model=None, config=None, **fields):
    defaults = from_config(GenerationDefaults(**(model or {})), defaults=Defaults(**(config or {})))
    return defaults.sampling(**fields)


def test_empty_request_gets_the_defaults_of_the_configuration():
    assert sampling() == SamplingParams(temperature=0.0, top_p=1.0)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize(
    ("request_value", "model", "config", "expected"),
    [
        (0.1, 0.2, 0.3, 0.1),
        (None, 0.2, 0.3, 0.2),
        (None, None, 0.3, 0.3),
        (0.1, None, 0.3, 0.1),
    ],
)
def test_request_overrides_model_and_model_overrides_configuration(name, request_value, model, config, expected):
    assert getattr(sampling({name: model}, {name: config}, **{name: request_value}), name) == expected


@pytest.mark.parametrize(
    ("name", "request_value", "model", "expected"),
    [
        ("top_k", 5, 20, 5),
        ("top_k", None, 20, 20),
        ("top_k", 0, 20, 0),
        ("top_k", -1, 20, 0),
        ("top_k", None, None, 0),
        ("min_p", 0.1, 0.2, 0.1),
        ("min_p", 0, 0.2, 0.0),
        ("min_p", None, 0.2, 0.2),
        ("repetition_penalty", 1, 1.2, 1.0),
        ("repetition_penalty", None, 1.2, 1.2),
        ("repetition_penalty", None, None, 1.0),
    ],
)
def test_request_overrides_model_where_the_configuration_has_no_key(name, request_value, model, expected):
    assert getattr(sampling({name: model}, **{name: request_value}), name) == expected


def test_temperature_zero_is_a_value_and_not_an_omission():
    assert sampling({"temperature": 0.6}, {"temperature": 0.7}, temperature=0).temperature == 0.0
    assert sampling({"temperature": 0.0}, {"temperature": 0.7}).temperature == 0.0


def test_top_p_zero_keeps_the_most_likely_token():
    assert sampling({"top_p": 0.5}, top_p=0).top_p == MIN_TOP_P


def test_max_tokens_comes_from_the_configuration():
    assert from_config().max_tokens is None
    assert from_config(defaults=Defaults(max_tokens=9)).max_tokens == 9


def test_settings_of_structured_output_come_from_the_configuration():
    assert (from_config().max_forced_calls, from_config().describe_schema) == (4, True)
    changed = from_config(input=Input(max_forced_calls=2), structured=Structured(describe_schema=False))
    assert (changed.max_forced_calls, changed.describe_schema) == (2, False)
