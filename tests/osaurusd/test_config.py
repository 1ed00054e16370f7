"""The configuration: what it is without a file, who overrides whom, and what is refused."""

import msgspec
import pytest

from osaurusd import config
from osaurusd.config import Config, Server
from osaurusd.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Loads a file with this text, under this environment and with these flags."""

    def load(text="", env=None, flags=None):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return config.load(path, env=env or {}, flags=flags)

    return load


TABLES = {"residency.keep_alive_by_model"}
"""Keys whose value is a table."""


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in TABLES:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


DEFAULTS = {
    "default_model": None,
    "default_for_unknown": False,
    "models.roots": [],
    "server.host": "localhost",
    "server.port": 8080,
    "server.allowed_hosts": [],
    "server.allowed_origins": [],
    "server.insecure": False,
    "server.require_key": False,
    "server.trust_loopback": False,
    "server.tls_certificate": None,
    "server.tls_key": None,
    "server.max_body_bytes": 33554432,
    "server.first_byte_seconds": 30.0,
    "server.shutdown_grace_seconds": 20.0,
    "limits.max_connections": 1024,
    "limits.max_requests": 256,
    "limits.max_buffered_bytes": 268435456,
    "limits.max_request_line_bytes": 8192,
    "limits.max_headers": 100,
    "limits.max_header_bytes": 16384,
    "limits.max_head_bytes": 65536,
    "limits.header_seconds": 20.0,
    "limits.body_stall_seconds": 30.0,
    "limits.body_seconds": 300.0,
    "limits.idle_seconds": 75.0,
    "limits.reader_stall_seconds": 60.0,
    "limits.request_seconds": 0.0,
    "defaults.temperature": 1.0,
    "defaults.top_p": 1.0,
    "defaults.max_tokens": None,
    "worker.dequantize": "auto",
    "worker.blas": "auto",
    "worker.prefix_cache_bytes": None,
    "worker.max_waiting": 64,
    "worker.stall_seconds": 0.2,
    "worker.load_timeout_seconds": 600.0,
    "worker.stop_grace_seconds": 5.0,
    "residency.budget_bytes": None,
    "residency.keep_alive_seconds": 900.0,
    "residency.keep_alive_by_model": {},
    "residency.wait_seconds": 60.0,
    "residency.min_residency_seconds": 10.0,
    "residency.hang_seconds": 120.0,
    "residency.spare_seconds": 0.0,
    "pulls.connections": 6,
    "pulls.stall_seconds": 30.0,
    "pulls.patience_seconds": 1800.0,
    "pulls.disk_margin_bytes": 1073741824,
    "input.max_messages": 4096,
    "input.max_parts": 2048,
    "input.max_tool_calls": 128,
    "input.max_name_length": 256,
    "input.max_stop_strings": 16,
    "input.max_stop_length": 1024,
    "input.max_tools": 128,
    "input.max_schema_bytes": 131072,
    "input.max_schema_depth": 100,
    "input.max_choices": 8,
    "input.max_top_logprobs": 20,
    "input.max_logit_bias": 1024,
    "input.max_prompts": 128,
    "log.level": "info",
    "log.content": False,
}


def test_without_a_file_everything_has_its_default(tmp_path):
    loaded = config.load(tmp_path / "none.toml", env={})
    assert dict(leaves(msgspec.to_builtins(loaded))) == DEFAULTS


def test_an_empty_file_says_nothing(load):
    assert load("") == Config()


def test_known_keys_are_every_key_that_there_is():
    assert list(config.known_keys()) == list(DEFAULTS)


def test_every_key_can_be_set_in_the_file(load):
    text = """
        default_model = "m"
        default_for_unknown = true
        [models]
        roots = ["/models"]
        [server]
        host = "0.0.0.0"
        port = 0
        allowed_hosts = ["studio.local"]
        allowed_origins = ["https://chat.example"]
        insecure = true
        require_key = true
        trust_loopback = true
        tls_certificate = "/a.pem"
        tls_key = "/a.key"
        max_body_bytes = 1
        first_byte_seconds = 2
        shutdown_grace_seconds = 0
        [limits]
        max_connections = 1
        max_requests = 1
        max_buffered_bytes = 1
        max_request_line_bytes = 256
        max_headers = 16
        max_header_bytes = 256
        max_head_bytes = 1024
        header_seconds = 0.5
        body_stall_seconds = 0.5
        body_seconds = 0.5
        idle_seconds = 0.5
        reader_stall_seconds = 0.5
        request_seconds = 1.0
        [defaults]
        temperature = 0
        top_p = 0.5
        max_tokens = 7
        [worker]
        dequantize = "never"
        blas = "none"
        prefix_cache_bytes = 0
        max_waiting = 1
        stall_seconds = 0.5
        load_timeout_seconds = 1.5
        stop_grace_seconds = 86400
        [residency]
        budget_bytes = 1
        keep_alive_seconds = -1
        keep_alive_by_model = { "llama-3.2-3b-instruct" = 0 }
        wait_seconds = 0
        min_residency_seconds = 0
        hang_seconds = 0.5
        spare_seconds = 1
        [input]
        max_messages = 11
        max_parts = 12
        max_tool_calls = 13
        max_name_length = 14
        max_stop_strings = 15
        max_stop_length = 16
        max_tools = 17
        max_schema_bytes = 18
        max_schema_depth = 19
        max_choices = 20
        max_top_logprobs = 21
        max_logit_bias = 22
        max_prompts = 23
        [pulls]
        connections = 32
        stall_seconds = 3600
        patience_seconds = 0
        disk_margin_bytes = 0
        [log]
        level = "debug"
        content = true
    """
    found = dict(leaves(msgspec.to_builtins(load(text))))
    assert found == {
        "default_model": "m",
        "default_for_unknown": True,
        "models.roots": ["/models"],
        "server.host": "0.0.0.0",
        "server.port": 0,
        "server.allowed_hosts": ["studio.local"],
        "server.allowed_origins": ["https://chat.example"],
        "server.insecure": True,
        "server.require_key": True,
        "server.trust_loopback": True,
        "server.tls_certificate": "/a.pem",
        "server.tls_key": "/a.key",
        "server.max_body_bytes": 1,
        "server.first_byte_seconds": 2.0,
        "server.shutdown_grace_seconds": 0.0,
        "limits.max_connections": 1,
        "limits.max_requests": 1,
        "limits.max_buffered_bytes": 1,
        "limits.max_request_line_bytes": 256,
        "limits.max_headers": 16,
        "limits.max_header_bytes": 256,
        "limits.max_head_bytes": 1024,
        "limits.header_seconds": 0.5,
        "limits.body_stall_seconds": 0.5,
        "limits.body_seconds": 0.5,
        "limits.idle_seconds": 0.5,
        "limits.reader_stall_seconds": 0.5,
        "limits.request_seconds": 1.0,
        "defaults.temperature": 0.0,
        "defaults.top_p": 0.5,
        "defaults.max_tokens": 7,
        "worker.dequantize": "never",
        "worker.blas": "none",
        "worker.prefix_cache_bytes": 0,
        "worker.max_waiting": 1,
        "worker.stall_seconds": 0.5,
        "worker.load_timeout_seconds": 1.5,
        "worker.stop_grace_seconds": 86400.0,
        "residency.budget_bytes": 1,
        "residency.keep_alive_seconds": -1.0,
        "residency.keep_alive_by_model": {"llama-3.2-3b-instruct": 0.0},
        "residency.wait_seconds": 0.0,
        "residency.min_residency_seconds": 0.0,
        "residency.hang_seconds": 0.5,
        "residency.spare_seconds": 1.0,
        "pulls.connections": 32,
        "pulls.stall_seconds": 3600.0,
        "pulls.patience_seconds": 0.0,
        "pulls.disk_margin_bytes": 0,
        "input.max_messages": 11,
        "input.max_parts": 12,
        "input.max_tool_calls": 13,
        "input.max_name_length": 14,
        "input.max_stop_strings": 15,
        "input.max_stop_length": 16,
        "input.max_tools": 17,
        "input.max_schema_bytes": 18,
        "input.max_schema_depth": 19,
        "input.max_choices": 20,
        "input.max_top_logprobs": 21,
        "input.max_logit_bias": 22,
        "input.max_prompts": 23,
        "log.level": "debug",
        "log.content": True,
    }
    assert all(found[key] != DEFAULTS[key] for key in DEFAULTS)


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
def test_flags_override_the_environment_and_that_the_file(load, text, env, flags, port):
    assert load(text, env, flags).server.port == port


def test_what_is_overridden_leaves_its_neighbours_alone(load):
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
def test_variables_set_their_key_and_no_other(load, variable, value, key):
    found = dict(leaves(msgspec.to_builtins(load("", {variable: value}))))
    changed = {name: str(found[name]) for name in found if found[name] != DEFAULTS[name]}
    assert changed == {key: value}


def test_other_variables_are_none_of_ours(load):
    assert load("", {"PORT": "1", "OSAURUS_HOME": "/x", "OSAURUS_SERVER_PORT": "1"}) == Config()


def test_the_environment_is_read_by_default(tmp_path, monkeypatch):
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
        ("[log]\nlevel = 'loud'", "log.level"),
        ("[log]\nlevel = 'INFO'", "log.level"),
    ],
)
def test_a_wrong_value_is_refused_naming_file_and_key(load, tmp_path, text, key):
    with pytest.raises(ConfigError) as refusal:
        load(text)
    assert refusal.value.param == key
    assert refusal.value.message.startswith(f"{tmp_path / 'config.toml'}: `{key}`: ")


def test_a_wrong_value_is_refused_even_if_it_is_overridden(load):
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
def test_a_wrong_variable_is_refused_by_name(load, variable, value, key):
    with pytest.raises(ConfigError) as refusal:
        load("", {variable: value})
    assert refusal.value.param == key
    assert refusal.value.message.startswith(f"the environment variable {variable}: `{key}`: ")


def test_a_wrong_flag_is_refused_by_name(load):
    with pytest.raises(ConfigError, match=r"^the command line: `server\.port`: ") as refusal:
        load("", {}, {("server", "port"): 65536})
    assert refusal.value.param == "server.port"


@pytest.mark.parametrize(
    ("text", "key", "meant"),
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
def test_an_unknown_key_is_refused_with_what_was_meant(load, tmp_path, text, key, meant):
    with pytest.raises(ConfigError) as refusal:
        load(text)
    assert refusal.value.param == key
    assert refusal.value.message == f"{tmp_path / 'config.toml'}: unknown key `{key}`; did you mean `{meant}`?"


def test_an_unknown_key_like_no_other_is_refused_with_all_that_there_are(load):
    with pytest.raises(ConfigError) as refusal:
        load("zzz = 1")
    assert refusal.value.param == "zzz"
    assert all(f"{key}" in refusal.value.message for key in DEFAULTS)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nx = 1\n", "server.x"),
        ("[other]\na.b = 1\n", "other"),
        ("server.host.name = 'x'", "server.host.name"),
    ],
)
def test_an_unknown_key_is_named_by_its_whole_path(load, text, key):
    with pytest.raises(ConfigError) as refusal:
        load(text)
    assert refusal.value.param == key


def test_a_quoted_key_with_a_dot_is_unknown_by_its_name(load):
    with pytest.raises(ConfigError) as refusal:
        load('"server.port" = 3')
    assert refusal.value.param == "server.port"
    assert "``" not in refusal.value.message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[server", id="open table"),
        pytest.param(b"port = ", id="no value"),
        pytest.param(b"a = 1\na = 2", id="twice the same key"),
        pytest.param(b"{}", id="JSON"),
        pytest.param(b"a = \xff", id="not UTF-8"),
        pytest.param(b"a = " + b"[" * 5000, id="nested too deeply"),
    ],
)
def test_broken_toml_is_refused_naming_the_file(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: "):
        config.load(path, env={})


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="directory"):
        config.load(tmp_path, env={})


def test_a_file_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="directory"):
        config.load(tmp_path / "file" / "config.toml", env={})


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_value_is_found_by_its_key(key):
    assert config.value_of(Config(), key) == DEFAULTS[key]


def test_keys_whose_values_differ_are_told(load):
    new = load('default_model = "m"\n[server]\nport = 1\nhost = "localhost"\n[log]\nlevel = "debug"')
    assert config.changed_keys(Config(), new) == ["default_model", "server.port", "log.level"]
    assert config.changed_keys(new, new) == []


def test_keys_that_need_a_restart_are_keys():
    assert set(DEFAULTS) >= config.NEEDS_RESTART


def test_the_configuration_cannot_be_changed():
    settings = Config()
    with pytest.raises(AttributeError):
        settings.default_model = "x"
    with pytest.raises(AttributeError):
        settings.server.port = 1


def test_lists_are_not_shared_between_configurations():
    Server().allowed_hosts.append("evil.example")
    assert [] == Server().allowed_hosts


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[residency]\nkeep_alive_by_model = { a = -2 }", "residency.keep_alive_by_model"),
        ("[residency]\nkeep_alive_by_model = { a = 'soon' }", "residency.keep_alive_by_model"),
        ("[residency]\nhang_seconds = 0", "residency.hang_seconds"),
        ("[residency]\nbudget_bytes = 0", "residency.budget_bytes"),
    ],
)
def test_what_residency_cannot_be_is_refused_by_its_key(load, text, key):
    with pytest.raises(ConfigError, match=key):
        load(text)


@pytest.mark.parametrize("pattern", ["*", "https://*", "https://chat.example/", "chat.example"])
def test_a_pattern_of_origins_that_is_none_is_refused_by_its_place(load, pattern):
    with pytest.raises(ConfigError, match=r"not an origin|unrelated|every") as refusal:
        load(f'server.allowed_origins = ["https://chat.example", "{pattern}"]')
    assert refusal.value.param == "server.allowed_origins[1]"
    assert "`server.allowed_origins[1]`: " in refusal.value.message
