"""Each key has its description, default and range in one place."""

import pytest

from osaurusd import config
from osaurusd.config import Config

SETTINGS = {setting.key: setting for setting in config.settings()}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_key_is_described_in_one_line(key):
    description = SETTINGS[key].description
    assert description[0].isupper() or description[0] == "`"
    assert not description.endswith(".")
    assert "\n" not in description


@pytest.mark.parametrize("key", SETTINGS)
def test_the_default_of_every_key_is_its_value_in_an_empty_configuration(key):
    assert SETTINGS[key].default == config.value_of(Config(), key)


@pytest.mark.parametrize("key", [key for key in SETTINGS if key.endswith(("_seconds", "_bytes"))])
def test_the_unit_of_a_key_is_the_one_in_its_name(key):
    assert key.endswith(f"_{SETTINGS[key].unit}")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("server.port", "0 to 65535"),
        ("defaults.top_p", "> 0, ≤ 1"),
        ("defaults.max_tokens", "≥ 1"),
        ("log.level", "debug, info, warning, error"),
        ("server.host", ""),
    ],
)
def test_the_range_of_a_key_is_readable(key, expected):
    assert SETTINGS[key].range == expected


def test_known_keys_are_in_the_order_of_the_file():
    assert list(config.known_keys()) == list(SETTINGS)


def test_listening_addresses_tls_files_and_the_store_need_a_restart():
    assert {
        "distributed.listen",
        "responses.store",
        "server.host",
        "server.port",
        "server.tls_certificate",
        "server.tls_key",
    } == config.NEEDS_RESTART
