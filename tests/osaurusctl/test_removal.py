"""`rm` and `prune`: preview, confirmation and result."""

import json

import pytest

from osaurusd.wire.admin import Leftover, Route


@pytest.fixture
def two_models(daemon, fake):
    daemon.models = [fake.model("llama"), fake.model("qwen", bytes=500_000_000)]


@pytest.fixture
def leftovers(daemon):
    daemon.leftovers = [
        Leftover(path="/hub/a.incomplete", bytes=2_000_000, what="partial download"),
        Leftover(path="/models/.b.tmp", bytes=500, what="partial import"),
    ]


def test_rm_removes_models_after_confirmation(two_models, daemon, terminal):
    screen = terminal("rm", "llama", "qwen", "llama")
    screen.expect("NAME   SIZE    REPO")
    screen.expect("llama  1.8 GB  mlx-community/llama-4bit")
    screen.expect("qwen   500 MB  mlx-community/qwen-4bit")
    screen.expect("Permanently remove this and free 2.3 GB? [y/N] ")
    screen.type("y\n")
    screen.expect("removed llama (1.8 GB)")
    screen.expect("removed qwen (500 MB)")
    screen.expect("freed 2.3 GB")
    assert screen.end()[1] == 0
    models = ["llama", "qwen"]
    assert daemon.bodies(Route.REMOVE) == [
        {"models": models, "force": False, "dry_run": True},
        {"models": models, "force": False, "dry_run": False},
    ]


@pytest.mark.parametrize("answer", ["\n", "n\n", "what\n", "\x04"])
def test_any_answer_but_yes_removes_nothing(two_models, daemon, terminal, answer):
    screen = terminal("rm", "llama")
    screen.expect("[y/N] ")
    screen.type(answer)
    shown, code = screen.end()
    assert code == 1
    assert "nothing removed" in shown
    assert [body["dry_run"] for body in daemon.bodies(Route.REMOVE)] == [True]


def test_ctrl_c_at_the_prompt_removes_nothing(two_models, daemon, terminal):
    screen = terminal("rm", "llama")
    screen.expect("[y/N] ")
    screen.type("\x03")
    assert screen.end()[1] == 130
    assert [body["dry_run"] for body in daemon.bodies(Route.REMOVE)] == [True]


def test_rm_with_yes_does_not_prompt(two_models, daemon, invoke):
    result = invoke("rm", "llama", "--yes", "--force")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "removed llama (1.8 GB)\nfreed 1.8 GB\n"
    assert daemon.bodies(Route.REMOVE) == [{"models": ["llama"], "force": True, "dry_run": False}]


@pytest.mark.parametrize("option", ["-f", "--force"])
def test_rm_with_force_does_not_prompt(two_models, daemon, run, option):
    assert run("rm", option, "llama").returncode == 0
    assert daemon.bodies(Route.REMOVE) == [{"models": ["llama"], "force": True, "dry_run": False}]


def test_rm_prints_one_json_document(two_models, daemon, invoke):
    result = invoke("rm", "llama", "qwen", "--yes", "--json")
    assert [each["bytes"] for each in json.loads(result.stdout)["removed"]] == [1_807_496_278, 500_000_000]


@pytest.mark.parametrize("command", [["rm", "llama"], ["prune"]], ids=" ".join)
def test_yes_is_required_without_a_terminal(two_models, daemon, run, command):
    result = run(*command)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == "error: no terminal to prompt for confirmation; pass --yes"
    assert daemon.requests == []


@pytest.mark.parametrize("command", [["rm", "llama"], ["prune"]], ids=" ".join)
def test_yes_is_required_with_json(two_models, daemon, terminal, command):
    shown, code = terminal(*command, "--json").end()
    assert code == 2
    assert "--json cannot prompt for confirmation; pass --yes" in shown
    assert daemon.requests == []


def test_error_for_a_busy_model_precedes_the_prompt(daemon, terminal):
    daemon.fail(Route.REMOVE, "busy", "`llama` is answering a request", status=409)
    shown, code = terminal("rm", "llama").end()
    assert code == 1
    assert "`llama` is answering a request" in shown
    assert "[y/N]" not in shown


def test_rm_of_an_unknown_model_exits_with_4(daemon, invoke):
    daemon.missing.add("qwen")
    assert invoke("rm", "llama", "qwen", "--yes").exit_code == 4


def test_prune_removes_leftovers_after_confirmation(leftovers, daemon, terminal):
    screen = terminal("prune")
    screen.expect("SIZE    KIND              PATH")
    screen.expect("2.0 MB  partial download  /hub/a.incomplete")
    screen.expect("500 B   partial import    /models/.b.tmp")
    screen.expect("Permanently remove this and free 2.0 MB? [y/N] ")
    screen.type("yes\n")
    screen.expect("freed 2.0 MB")
    assert screen.end()[1] == 0
    assert daemon.leftovers == []


def test_prune_removes_nothing_without_confirmation(leftovers, daemon, terminal):
    screen = terminal("prune")
    screen.expect("[y/N] ")
    screen.type("\n")
    assert screen.end()[1] == 1
    assert daemon.bodies(Route.PRUNE) == [{"dry_run": True}]


def test_prune_lists_what_it_removed(leftovers, daemon, invoke):
    result = invoke("prune", "--yes")
    assert result.stdout.splitlines() == [
        "removed /hub/a.incomplete (2.0 MB)",
        "removed /models/.b.tmp (500 B)",
        "freed 2.0 MB",
    ]
    assert daemon.bodies(Route.PRUNE) == [{"dry_run": False}]


def test_prune_reports_that_there_are_no_leftovers(daemon, invoke, terminal):
    result = invoke("prune", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing to remove\n")
    shown, code = terminal("prune").end()
    assert (shown.strip(), code) == ("nothing to remove", 0)


def test_prune_prints_one_json_document(leftovers, daemon, invoke):
    document = json.loads(invoke("prune", "--yes", "--json").stdout)
    assert [each["path"] for each in document["leftovers"]] == ["/hub/a.incomplete", "/models/.b.tmp"]
