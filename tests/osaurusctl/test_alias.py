"""`alias` gives models further names; `reload` says what became of the configuration."""

import json

import pytest

from osaurusd.wire.admin import ReloadReply, Route


def test_aliases_are_listed(daemon, invoke):
    daemon.aliases = {"fast": "llama", "big-one": "qwen"}
    assert invoke("alias").stdout.splitlines() == ["ALIAS    MODEL", "fast     llama", "big-one  qwen"]
    assert json.loads(invoke("alias", "--json").stdout)[0] == {"alias": "fast", "target": "llama"}


def test_no_aliases_say_how_to_make_one(daemon, invoke):
    result = invoke("alias")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no aliases yet; `osaurusctl alias NAME TARGET` makes one\n"
    assert invoke("alias", "--json").stdout == "[]\n"


def test_an_alias_is_made(daemon, invoke):
    assert invoke("alias", "fast", "llama").stdout == "fast means llama\n"
    assert daemon.bodies(Route.ALIASES) == [{"alias": "fast", "target": "llama"}]
    assert json.loads(invoke("alias", "fast", "qwen", "--json").stdout) == {"alias": "fast", "target": "qwen"}


def test_an_alias_is_taken_away(daemon, invoke):
    daemon.aliases = {"fast": "llama"}
    assert invoke("alias", "--rm", "fast").stdout == "fast no longer means llama\n"
    assert daemon.bodies(Route.ALIASES) == [{"alias": "fast", "target": None}]


def test_a_name_that_is_taken_is_an_error_with_a_hint_that_fits(daemon, invoke):
    daemon.fail(Route.ALIASES, "name_taken", "`llama` is a model's name", status=409)
    result = invoke("alias", "llama", "qwen")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: `llama` is a model's name",
        "hint: `osaurusctl ls` lists the names that are taken",
    ]


def test_an_unknown_target_is_4(daemon, invoke):
    daemon.fail(Route.ALIASES, "model_not_found", "no model `nope`", status=404)
    assert invoke("alias", "fast", "nope").exit_code == 4


@pytest.mark.parametrize(
    ("applied", "needs_restart", "stdout", "stderr"),
    [
        (["log.level"], [], ["in force  log.level"], ""),
        (
            [],
            ["server.port"],
            ["needs a restart  server.port"],
            "`osaurusctl restart` restarts the daemon\n",
        ),
        (
            ["log.level", "defaults.top_p"],
            ["server.port"],
            ["in force         log.level", "                 defaults.top_p", "needs a restart  server.port"],
            "`osaurusctl restart` restarts the daemon\n",
        ),
        ([], [], [], "nothing has changed\n"),
    ],
)
def test_reload_says_what_is_in_force(daemon, invoke, applied, needs_restart, stdout, stderr):
    daemon.reloaded = ReloadReply(applied=applied, needs_restart=needs_restart)
    result = invoke("reload")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == stdout
    assert result.stderr == stderr
    assert json.loads(invoke("reload", "--json").stdout) == {"applied": applied, "needs_restart": needs_restart}


def test_a_bad_file_is_an_error(daemon, invoke):
    daemon.fail(Route.RELOAD, "config_error", "config.toml: unknown key `prot`", status=500)
    result = invoke("reload")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: config.toml: unknown key `prot`",
        "hint: `osaurusctl config path` names the file, and `osaurusctl config check` checks it",
    ]
