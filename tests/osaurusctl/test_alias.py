"""`alias` and `reload`."""

import json

import pytest

from osaurusd.wire.admin import ReloadReply, Route


def test_aliases_are_listed(daemon, invoke):
    daemon.aliases = {"fast": "llama", "big-one": "qwen"}
    assert invoke("alias").stdout.splitlines() == ["ALIAS    MODEL", "fast     llama", "big-one  qwen"]
    assert json.loads(invoke("alias", "--json").stdout)[0] == {"alias": "fast", "target": "llama"}


def test_empty_list_suggests_how_to_add_an_alias(daemon, invoke):
    result = invoke("alias")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == 'no aliases; run "osaurusctl alias NAME TARGET" to add one\n'
    assert invoke("alias", "--json").stdout == "[]\n"


def test_alias_is_added(daemon, invoke):
    assert invoke("alias", "fast", "llama").stdout == "fast is now an alias of llama\n"
    assert daemon.bodies(Route.ALIASES) == [{"alias": "fast", "target": "llama"}]
    assert json.loads(invoke("alias", "fast", "qwen", "--json").stdout) == {"alias": "fast", "target": "qwen"}


def test_alias_is_removed(daemon, invoke):
    daemon.aliases = {"fast": "llama"}
    assert invoke("alias", "--rm", "fast").stdout == "removed alias fast of llama\n"
    assert daemon.bodies(Route.ALIASES) == [{"alias": "fast", "target": None}]


def test_name_in_use_is_an_error_with_a_hint(daemon, invoke):
    daemon.fail(Route.ALIASES, "name_taken", "`llama` is a model's name", status=409)
    result = invoke("alias", "llama", "qwen")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: `llama` is a model's name",
        'hint: run "osaurusctl ls" to list the names in use',
    ]


def test_unknown_target_exits_with_4(daemon, invoke):
    daemon.fail(Route.ALIASES, "model_not_found", "no model `nope`", status=404)
    assert invoke("alias", "fast", "nope").exit_code == 4


@pytest.mark.parametrize(
    ("applied", "needs_restart", "stdout", "stderr"),
    [
        (["log.level"], [], ["in effect  log.level"], ""),
        (
            [],
            ["server.port"],
            ["needs restart  server.port"],
            'run "osaurusctl restart" to apply the rest\n',
        ),
        (
            ["log.level", "defaults.top_p"],
            ["server.port"],
            ["in effect      log.level", "               defaults.top_p", "needs restart  server.port"],
            'run "osaurusctl restart" to apply the rest\n',
        ),
        ([], [], [], "no changes\n"),
    ],
)
def test_reload_lists_keys_in_effect_and_keys_that_need_a_restart(
    daemon, invoke, applied, needs_restart, stdout, stderr
):
    daemon.reloaded = ReloadReply(applied=applied, needs_restart=needs_restart)
    result = invoke("reload")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == stdout
    assert result.stderr == stderr
    assert json.loads(invoke("reload", "--json").stdout) == {"applied": applied, "needs_restart": needs_restart}


def test_reload_reports_an_invalid_file(daemon, invoke):
    daemon.fail(Route.RELOAD, "config_error", "config.toml: unknown key `prot`", status=500)
    result = invoke("reload")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: config.toml: unknown key `prot`",
        'hint: run "osaurusctl config check" to validate the file; "osaurusctl config path" prints its path',
    ]
