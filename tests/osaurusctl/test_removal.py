"""`rm` and `prune` say what would go, ask, and tell what came free."""

import json

import pytest

from osaurusd.wire.admin import Leftover, Route


@pytest.fixture
def two(daemon, fake):
    daemon.models = [fake.model("llama"), fake.model("qwen", bytes=500_000_000)]


@pytest.fixture
def rubbish(daemon):
    daemon.leftovers = [
        Leftover(path="/hub/a.incomplete", bytes=2_000_000, what="broken-off download"),
        Leftover(path="/models/.b.tmp", bytes=500, what="broken-off import"),
    ]


def test_rm_asks_and_removes(two, daemon, terminal):
    screen = terminal("rm", "llama", "qwen", "llama")
    screen.expect("NAME   SIZE    REPO")
    screen.expect("llama  1.8 GB  mlx-community/llama-4bit")
    screen.expect("qwen   500 MB  mlx-community/qwen-4bit")
    screen.expect("Remove this for good and free 2.3 GB? [y/N] ")
    screen.type("y\n")
    screen.expect("llama is removed (1.8 GB)")
    screen.expect("qwen is removed (500 MB)")
    screen.expect("2.3 GB freed")
    assert screen.end()[1] == 0
    models = ["llama", "qwen"]
    assert daemon.bodies(Route.REMOVE) == [
        {"models": models, "force": False, "dry_run": True},
        {"models": models, "force": False, "dry_run": False},
    ]


@pytest.mark.parametrize("answer", ["\n", "n\n", "what\n", "\x04"])
def test_anything_but_yes_removes_nothing(two, daemon, terminal, answer):
    screen = terminal("rm", "llama")
    screen.expect("[y/N] ")
    screen.type(answer)
    shown, code = screen.end()
    assert code == 1
    assert "nothing was removed" in shown
    assert [body["dry_run"] for body in daemon.bodies(Route.REMOVE)] == [True]


def test_interrupting_the_question_removes_nothing(two, daemon, terminal):
    screen = terminal("rm", "llama")
    screen.expect("[y/N] ")
    screen.type("\x03")
    assert screen.end()[1] == 130
    assert [body["dry_run"] for body in daemon.bodies(Route.REMOVE)] == [True]


def test_rm_yes_asks_nothing(two, daemon, invoke):
    result = invoke("rm", "llama", "--yes", "--force")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "llama is removed (1.8 GB)\n1.8 GB freed\n"
    assert daemon.bodies(Route.REMOVE) == [{"models": ["llama"], "force": True, "dry_run": False}]


def test_rm_json_is_one_document(two, daemon, invoke):
    result = invoke("rm", "llama", "qwen", "--yes", "--json")
    assert [each["bytes"] for each in json.loads(result.stdout)["removed"]] == [1_807_496_278, 500_000_000]


@pytest.mark.parametrize("command", [["rm", "llama"], ["prune"]], ids=" ".join)
def test_without_a_terminal_yes_must_be_said(two, daemon, ctl, command):
    result = ctl(*command)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == "error: there is no terminal to ask at: say `--yes`"
    assert daemon.requests == []


@pytest.mark.parametrize("command", [["rm", "llama"], ["prune"]], ids=" ".join)
def test_json_asks_nothing(two, daemon, terminal, command):
    shown, code = terminal(*command, "--json").end()
    assert code == 2
    assert "`--json` asks no questions: say `--yes`" in shown
    assert daemon.requests == []


def test_a_busy_model_is_said_before_the_question(daemon, terminal):
    daemon.fail(Route.REMOVE, "busy", "`llama` is answering a request", status=409)
    shown, code = terminal("rm", "llama").end()
    assert code == 1
    assert "`llama` is answering a request" in shown
    assert "[y/N]" not in shown


def test_rm_of_no_model_is_4(daemon, invoke):
    daemon.missing.add("qwen")
    assert invoke("rm", "llama", "qwen", "--yes").exit_code == 4


def test_prune_asks_and_removes(rubbish, daemon, terminal):
    screen = terminal("prune")
    screen.expect("SIZE    WHAT                 PATH")
    screen.expect("2.0 MB  broken-off download  /hub/a.incomplete")
    screen.expect("500 B   broken-off import    /models/.b.tmp")
    screen.expect("Remove this for good and free 2.0 MB? [y/N] ")
    screen.type("yes\n")
    screen.expect("2.0 MB freed")
    assert screen.end()[1] == 0
    assert daemon.leftovers == []


def test_prune_removes_nothing_without_a_yes(rubbish, daemon, terminal):
    screen = terminal("prune")
    screen.expect("[y/N] ")
    screen.type("\n")
    assert screen.end()[1] == 1
    assert daemon.bodies(Route.PRUNE) == [{"dry_run": True}]


def test_prune_yes_says_what_is_gone(rubbish, daemon, invoke):
    result = invoke("prune", "--yes")
    assert result.stdout.splitlines() == [
        "/hub/a.incomplete is removed (2.0 MB)",
        "/models/.b.tmp is removed (500 B)",
        "2.0 MB freed",
    ]
    assert daemon.bodies(Route.PRUNE) == [{"dry_run": False}]


def test_prune_with_nothing_to_do_says_so(daemon, invoke, terminal):
    result = invoke("prune", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing is left over\n")
    shown, code = terminal("prune").end()
    assert (shown.strip(), code) == ("nothing is left over", 0)


def test_prune_json_is_one_document(rubbish, daemon, invoke):
    document = json.loads(invoke("prune", "--yes", "--json").stdout)
    assert [each["path"] for each in document["leftovers"]] == ["/hub/a.incomplete", "/models/.b.tmp"]
