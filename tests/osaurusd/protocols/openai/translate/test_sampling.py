"""How tokens are chosen, and when to stop."""

import pytest

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import SamplingParams
from osaurusd.models.record import GenerationDefaults

from .asking import chat_order, completion_orders


def sampling(model=None, defaults=None, **fields):
    return chat_order(model, defaults, **fields).sampling


def test_a_request_that_says_nothing_gets_the_config_files_defaults():
    assert SamplingParams(temperature=1.0, top_p=1.0) == sampling()


def test_a_request_gets_all_that_it_says():
    said = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "frequency_penalty": -2,
        "presence_penalty": 1.5,
        "seed": 7,
    }
    expected = SamplingParams(**said, logit_bias=[(50256, -100.0), (0, 2.5)])
    said["logit_bias"] = {"50256": -100, "0": 2.5}

    assert expected == sampling(**said)
    assert expected == completion_orders(prompt="a", **said)[0].sampling


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize(
    ("request_", "model", "config", "expected"),
    [
        (0.1, 0.2, 0.3, 0.1),
        (None, 0.2, 0.3, 0.2),
        (None, None, 0.3, 0.3),
        (0.1, None, 0.3, 0.1),
        (None, None, None, 1.0),
    ],
)
def test_the_request_wins_over_the_model_and_that_over_the_config(name, request_, model, config, expected):
    found = sampling(
        model=GenerationDefaults(**{name: model}),
        defaults=Defaults() if config is None else Defaults(**{name: config}),
        **{name: request_},
    )
    assert expected == getattr(found, name)


@pytest.mark.parametrize(
    ("name", "request_", "model", "expected"),
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
def test_the_model_is_asked_where_the_request_is_silent(name, request_, model, expected):
    assert expected == getattr(sampling(GenerationDefaults(**{name: model}), **{name: request_}), name)


def test_a_temperature_of_zero_is_said_and_not_left_out():
    model, config = GenerationDefaults(temperature=0.6), Defaults(temperature=0.7)
    assert sampling(model, config, temperature=0).temperature == 0.0
    assert sampling(GenerationDefaults(temperature=0.0), config).temperature == 0.0


def test_a_top_p_of_zero_keeps_the_likeliest_token():
    assert 0 < sampling(GenerationDefaults(top_p=0.5), top_p=0).top_p <= 1e-6


@pytest.mark.parametrize("key", ["", "a", "-1", "+1", "01", "1.0", " 1", "1_0", "\u0661", "2147483648", "9" * 5000])
def test_a_key_of_the_logit_bias_is_a_token_id(key):
    with pytest.raises(InvalidRequest) as refusal:
        sampling(logit_bias={key: 1})
    assert refusal.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, []),
        ([], []),
        ("###", ["###"]),
        (["###"], ["###"]),
        (["\n\n", "###"], ["\n\n", "###"]),
        (["x"] * 16, ["x"] * 16),
    ],
)
def test_stop_has_several_forms(stop, expected):
    assert expected == chat_order(stop=stop).stop
    assert expected == completion_orders(stop=stop)[0].stop


def test_too_many_stop_strings_are_refused():
    with pytest.raises(InvalidRequest) as refusal:
        chat_order(stop=["x"] * 17)
    assert ("stop", "`stop`: at most 16 strings, not 17 (`input.max_stop_strings`)") == (
        refusal.value.param,
        refusal.value.message,
    )
