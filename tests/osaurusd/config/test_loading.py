"""Loading the configuration: defaults, precedence of the sources, and errors that name the source and the key."""

import json
import re
from typing import Literal, get_args, get_origin

import msgspec
import pytest

from osaurusd import config
from osaurusd.config import Config, Server, Setting
from osaurusd.config.distributed import DistributedModel
from osaurusd.errors import ConfigError

SETTINGS = {setting.key: setting for setting in config.settings()}


@pytest.fixture
def load(tmp_path):
    """Load a file with this text, under this environment and with these flags."""

    def load(text="", env=None, flags=None):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return config.load(path, env=env or {}, flags=flags)

    return load


def flatten(loaded):
    """The values of a configuration by dotted key."""
    return {key: config.value_of(loaded, key) for key in SETTINGS}


ADDRESSES = {"distributed.listen": "10.0.0.1:8444", "distributed.link_address": "10.0.0.1"}


def other_value(setting: Setting) -> object:
    """A valid value for a setting that is not its default."""
    if get_origin(setting.type) is Literal:
        return next(choice for choice in get_args(setting.type) if choice != setting.default)
    match setting.default:
        case bool():
            return not setting.default
        case int():
            return setting.default - 1 if setting.default > 1 else setting.default + 1
        case float():
            return setting.default / 2 or 1.0
        case list():
            return ["chat.example" if setting.key.endswith("hosts") else "https://chat.example"]
        case dict() if setting.key == "distributed.models":
            return {"llama-3.3-70b-instruct": DistributedModel(hosts=["mac-2"], split="tensor")}
        case dict():
            return {"llama-3.2-3b-instruct": 0.0}
    return 7 if int in get_args(setting.type) else ADDRESSES.get(setting.key, "other")


def as_toml(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return as_toml(msgspec.to_builtins(value))
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {as_toml(item)}' for key, item in value.items()) + " }"
    return json.dumps(value)


def test_a_missing_file_yields_the_defaults(tmp_path):
    assert config.load(tmp_path / "none.toml", env={}) == Config()


def test_an_empty_file_yields_the_defaults(load):
    assert load("") == Config()


def test_every_key_can_be_set_in_the_file(load):
    values = {key: other_value(setting) for key, setting in SETTINGS.items()}
    text = "".join(f"{key} = {as_toml(value)}\n" for key, value in values.items())

    assert values == flatten(load(text))
    assert all(values[key] != SETTINGS[key].default for key in SETTINGS)


@pytest.mark.parametrize(
    ("text", "env", "flags", "port"),
    [
        ("", {}, {}, 8080),
        ("[server]\nport = 1", {}, {}, 1),
        ("", {"OSAURUS_PORT": "2"}, {}, 2),
        ("", {}, {("server", "port"): 3}, 3),
        ("[server]\nport = 1", {"OSAURUS_PORT": "2"}, {}, 2),
        ("[server]\nport = 1", {}, {("server", "port"): 3}, 3),
        ("", {"OSAURUS_PORT": "2"}, {("server", "port"): 3}, 3),
        ("[server]\nport = 1", {"OSAURUS_PORT": "2"}, {("server", "port"): 3}, 3),
        ("[server]\nport = 1", {"OSAURUS_PORT": "2"}, {("server", "port"): 0}, 0),
    ],
)
def test_flags_override_the_environment_which_overrides_the_file(load, text, env, flags, port):
    assert load(text, env, flags).server.port == port


def test_an_override_changes_only_its_own_key(load):
    loaded = load('[server]\nhost = "::1"\nport = 1', {"OSAURUS_PORT": "2"})
    assert loaded == Config(server=Server(host="::1", port=2))


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("OSAURUS_HOST", "192.0.2.1", "server.host"),
        ("OSAURUS_PORT", "9", "server.port"),
        ("OSAURUS_DEFAULT_MODEL", "llama-3.2-3b-instruct", "default_model"),
        ("OSAURUS_DEFAULT_MODEL", "null", "default_model"),
        ("OSAURUS_DEFAULT_MODEL", "70", "default_model"),
        ("OSAURUS_LOG_LEVEL", "warning", "log.level"),
    ],
)
def test_an_environment_variable_sets_only_its_own_key(load, variable, value, key):
    values = flatten(load("", {variable: value}))
    changed = {name: str(values[name]) for name in values if values[name] != SETTINGS[name].default}
    assert changed == {key: value}


def test_other_environment_variables_are_ignored(load):
    assert load("", {"PORT": "1", "OSAURUS_HOME": "/x", "OSAURUS_SERVER_PORT": "1"}) == Config()


def test_the_process_environment_is_read_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("OSAURUS_PORT", "4711")
    assert config.load(tmp_path / "none.toml").server.port == 4711


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("default_model = 3", "default_model"),
        ("default_model = ['a']", "default_model"),
        ("[default_model]", "default_model"),
        ("default_for_unknown = 1", "default_for_unknown"),
        ("models = []", "models"),
        ("[models]\nroots = '/models'", "models.roots"),
        ("[models]\nroots = ['/models', 1]", "models.roots[1]"),
        ("server = 3", "server"),
        ("[[server]]\nport = 1", "server"),
        ("[server]\nhost = 1", "server.host"),
        ("[server]\nhost = 2020-01-01", "server.host"),
        ("[server]\nhost = ''", "server.host"),
        ("[server]\nhost = 'http://localhost'", "server.host"),
        ("[server]\nhost = 'localhost:8080'", "server.host"),
        ("[server]\nhost = '[::1]'", "server.host"),
        ("[server]\nport = -1", "server.port"),
        ("[server]\nport = 65536", "server.port"),
        ("[server]\nport = 1267650600228229401496703205376", "server.port"),
        ("[server]\nport = '8080'", "server.port"),
        ("[server]\nport = 80.5", "server.port"),
        ("[server]\nport = true", "server.port"),
        ("[server.port]", "server.port"),
        ("[server]\nallowed_hosts = 'a'", "server.allowed_hosts"),
        ("[server]\nallowed_hosts = ['a', 1]", "server.allowed_hosts[1]"),
        ("[server]\nallowed_origins = {}", "server.allowed_origins"),
        ("[server]\nmax_body_bytes = 0", "server.max_body_bytes"),
        ("[server]\nshutdown_grace_seconds = -1", "server.shutdown_grace_seconds"),
        ("[server]\nshutdown_grace_seconds = 86401", "server.shutdown_grace_seconds"),
        ("[server]\nshutdown_grace_seconds = nan", "server.shutdown_grace_seconds"),
        ("[vision]\nallowed_url_hosts = ['a.example', 'https://b.example']", "vision.allowed_url_hosts[1]"),
        ("[vision]\nmax_image_pixels = 90000000", "vision.max_image_pixels"),
        ("[limits]\nmax_connections = 0", "limits.max_connections"),
        ("[limits]\nmax_requests = 0", "limits.max_requests"),
        ("[limits]\nmax_headers = 15", "limits.max_headers"),
        ("[limits]\nmax_header_bytes = '16k'", "limits.max_header_bytes"),
        ("[limits]\nmax_head_bytes = 1.5", "limits.max_head_bytes"),
        ("[limits]\nheader_seconds = 0", "limits.header_seconds"),
        ("[limits]\nreader_stall_seconds = inf", "limits.reader_stall_seconds"),
        ("[limits]\nrequest_seconds = -1", "limits.request_seconds"),
        ("[defaults]\ntemperature = -0.1", "defaults.temperature"),
        ("[defaults]\ntemperature = 2.1", "defaults.temperature"),
        ("[defaults]\ntemperature = nan", "defaults.temperature"),
        ("[defaults]\ntemperature = inf", "defaults.temperature"),
        ("[defaults]\ntop_p = 0", "defaults.top_p"),
        ("[defaults]\ntop_p = 1.1", "defaults.top_p"),
        ("[defaults]\nmax_tokens = 0", "defaults.max_tokens"),
        ("[defaults]\nmax_tokens = 1.5", "defaults.max_tokens"),
        ("[worker]\ndequantize = 'sometimes'", "worker.dequantize"),
        ("[worker]\ndequantize = true", "worker.dequantize"),
        ("[worker]\nblas = 1", "worker.blas"),
        ("[worker]\nload_timeout_seconds = inf", "worker.load_timeout_seconds"),
        ("[worker]\nstop_grace_seconds = '5'", "worker.stop_grace_seconds"),
        ("[residency]\nkeep_alive_by_model = { a = -2 }", "residency.keep_alive_by_model[...]"),
        ("[residency]\nkeep_alive_by_model = { a = 'soon' }", "residency.keep_alive_by_model[...]"),
        ("[residency]\nhang_seconds = 0", "residency.hang_seconds"),
        ("[residency]\nbudget_bytes = 0", "residency.budget_bytes"),
        ("[server]\nfirst_byte_seconds = -1", "server.first_byte_seconds"),
        ("[log]\nlevel = 'loud'", "log.level"),
        ("[log]\nlevel = 'INFO'", "log.level"),
    ],
)
def test_an_invalid_value_is_rejected_naming_file_and_key(load, tmp_path, text, key):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.param == key
    assert caught.value.message.startswith(f"{tmp_path / 'config.toml'}: `{key}`: ")


def test_an_invalid_value_is_rejected_even_when_overridden(load):
    with pytest.raises(ConfigError, match=r"config\.toml: `server\.port`"):
        load("[server]\nport = 'eighty'", {"OSAURUS_PORT": "80"})


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("OSAURUS_PORT", "", "server.port"),
        ("OSAURUS_PORT", "http", "server.port"),
        ("OSAURUS_PORT", "-1", "server.port"),
        ("OSAURUS_PORT", "65536", "server.port"),
        ("OSAURUS_PORT", "9" * 5000, "server.port"),
        ("OSAURUS_LOG_LEVEL", "INFO", "log.level"),
        ("OSAURUS_LOG_LEVEL", "", "log.level"),
    ],
)
def test_an_invalid_environment_variable_is_rejected_by_name(load, variable, value, key):
    with pytest.raises(ConfigError) as caught:
        load("", {variable: value})
    assert caught.value.param == key
    assert caught.value.message.startswith(f"the environment variable {variable}: `{key}`: ")


def test_an_invalid_flag_is_rejected_by_name(load):
    with pytest.raises(ConfigError, match=r"^the command line: `server\.port`: ") as caught:
        load("", {}, {("server", "port"): 65536})
    assert caught.value.param == "server.port"


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("[server]\nprot = 1", "server.prot", "server.port"),
        ("[server]\nallowed_host = []", "server.allowed_host", "server.allowed_hosts"),
        ("defaultmodel = 'x'", "defaultmodel", "default_model"),
        ("[defaults]\ntemprature = 1", "defaults.temprature", "defaults.temperature"),
        ("[worker]\nstop_grace = 1", "worker.stop_grace", "worker.stop_grace_seconds"),
        ("[log]\nlevels = 'info'", "log.levels", "log.level"),
        ("[server.port]\nnumber = 1", "server.port.number", "server.port"),
    ],
)
def test_an_unknown_key_is_rejected_with_a_suggestion(load, tmp_path, text, key, suggestion):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.param == key
    assert caught.value.message == f"{tmp_path / 'config.toml'}: unknown key `{key}`; did you mean `{suggestion}`?"


def test_an_unknown_key_without_a_close_match_is_rejected_with_the_command_that_lists_the_keys(load):
    with pytest.raises(ConfigError) as caught:
        load("zzz = 1")
    assert caught.value.param == "zzz"
    assert "osaurusctl config get" in caught.value.message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nx = 1\n", "server.x"),
        ("[other]\na.b = 1\n", "other"),
        ("server.host.name = 'x'", "server.host.name"),
    ],
)
def test_an_unknown_key_is_reported_with_its_full_path(load, text, key):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.param == key


def test_a_quoted_key_with_a_dot_is_unknown(load):
    with pytest.raises(ConfigError) as caught:
        load('"server.port" = 3')
    assert caught.value.param == "server.port"
    assert "``" not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[server", id="open table"),
        pytest.param(b"port = ", id="no value"),
        pytest.param(b"a = 1\na = 2", id="duplicate key"),
        pytest.param(b"{}", id="JSON"),
        pytest.param(b"a = \xff", id="not UTF-8"),
        pytest.param(b"a = " + b"[" * 5000, id="nested too deeply"),
    ],
)
def test_invalid_toml_is_rejected_naming_the_file(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: "):
        config.load(path, env={})


def test_a_directory_in_place_of_the_file_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="directory"):
        config.load(tmp_path, env={})


def test_a_path_below_a_file_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="directory"):
        config.load(tmp_path / "file" / "config.toml", env={})


@pytest.mark.parametrize("pattern", ["*", "https://*", "https://chat.example/", "chat.example"])
def test_an_invalid_origin_pattern_is_rejected_with_its_index(load, pattern):
    with pytest.raises(ConfigError) as caught:
        load(f'server.allowed_origins = ["https://chat.example", "{pattern}"]')
    assert caught.value.param == "server.allowed_origins[1]"
    assert "`server.allowed_origins[1]`: " in caught.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("listen", "10.0.0.1"),
        ("listen", "10.0.0.1:"),
        ("listen", "10.0.0.1:65536"),
        ("listen", "host.local:8444"),
        ("listen", "fd00::1:8444"),
        ("listen", "[10.0.0.1:8444"),
        ("link_address", "10.0.0.1:8444"),
        ("link_address", "host"),
        ("link_address", "8.8.8.8"),
        ("link_address", "2001:db8::1"),
        ("link_address", "fd00::1"),
    ],
)
def test_an_unusable_address_is_rejected_naming_the_key(load, key, value):
    with pytest.raises(ConfigError, match=f"`distributed.{key}`: .*{re.escape(value)}") as caught:
        load(f'[distributed]\n{key} = "{value}"\n')
    assert f"distributed.{key}" == caught.value.param


def test_the_configuration_is_immutable():
    with pytest.raises(AttributeError):
        Config().default_model = "x"
    with pytest.raises(AttributeError):
        Config().server.port = 1


def test_default_lists_are_not_shared():
    Server().allowed_hosts.append("other.example")
    assert [] == Server().allowed_hosts
