"""Reading the configuration again while the daemon serves."""

import pytest

from osaurusd.config import Config, LiveConfig, Log, Server
from osaurusd.errors import ConfigError


def test_a_reload_separates_keys_that_apply_now_from_keys_that_need_a_restart():
    wanted = Config(default_model="m", server=Server(port=1, require_key=True), log=Log(level="debug"))
    live = LiveConfig(Config(), lambda: wanted)

    change = live.read_again()

    assert ["default_model", "server.require_key", "log.level"] == change.applied
    assert ["server.port"] == change.needs_restart
    assert wanted == change.wanted
    assert Config(default_model="m", server=Server(require_key=True), log=Log(level="debug")) == change.effective


def test_an_unchanged_configuration_reports_no_keys():
    change = LiveConfig(Config(), Config).read_again()
    assert ([], []) == (change.applied, change.needs_restart)


def test_an_invalid_configuration_leaves_the_current_one_in_force():
    def fail():
        raise ConfigError("invalid")

    live = LiveConfig(Config(), fail)
    with pytest.raises(ConfigError):
        live.read_again()
    assert Config() == live.current
