"""Which model answers, and offers to start the daemon and to download the model."""

import pytest

from osaurusctl.chat.model import split_arguments
from osaurusd.wire.admin import Route
from osaurusd.wire.pulls import PullDone, PullInfo, PullRoute, PullState


@pytest.mark.parametrize(
    ("arguments", "name", "prompt"),
    [
        ([], None, None),
        (["llama"], "llama", None),
        (["mlx-community/Llama-3.2@main"], "mlx-community/Llama-3.2@main", None),
        (["模型-ünï"], "模型-ünï", None),
        (["my model"], "my model", None),
        (["my model", "Why?"], "my model", "Why?"),
        (["Why is the sky blue?"], None, "Why is the sky blue?"),
        (["Why?"], None, "Why?"),
        (["llama", "why", "me?"], "llama", "why me?"),
        (["llama", ""], "llama", None),
        ([""], None, None),
    ],
)
def test_first_argument_is_a_name_if_it_can_be_one(arguments, name, prompt):
    assert split_arguments(tuple(arguments), lambda: ["my model"]) == (name, prompt)


def test_daemon_is_started_after_a_question(home, fake_program, terminal):
    screen = terminal("run", "llama", "hello")
    screen.expect("osaurusd is not running. Start it? [Y/n] ")
    screen.type("\n")
    screen.expect("Hello there")
    assert screen.end()[1] == 0
    assert fake_program()["argv"] == ["serve"]


def test_daemon_is_not_started_against_the_users_will(home, terminal):
    screen = terminal("run", "llama", "hello")
    screen.expect("[Y/n] ")
    screen.type("n\n")
    shown, code = screen.end()
    assert code == 3
    assert "osaurusctl up" in shown


def test_daemon_is_not_started_without_a_terminal(ctl):
    assert ctl("run", "llama", "hello").returncode == 3


def test_yes_starts_the_daemon_without_a_question(ctl, fake_program):
    result = ctl("run", "llama", "hello", "--yes")
    assert (result.returncode, result.stdout) == (0, "Hello there\n")
    assert fake_program()["argv"] == ["serve"]


@pytest.fixture
def download(daemon, fake):
    """Let the daemon download `qwen3` when `qwen` is requested."""
    daemon.missing.add("qwen")
    pull = PullInfo(id="1", name="qwen3", repo="org/qwen3", revision="main", state=PullState.DONE)
    daemon.pulls = [pull]
    daemon.pull_events = [PullDone(pull=pull, model=fake.model("qwen3"))]


def test_model_is_downloaded_after_a_question(daemon, download, terminal):
    screen = terminal("run", "qwen")
    screen.expect("no model `qwen`")
    screen.expect("Download qwen now? [Y/n] ")
    screen.type("y\n")
    screen.expect("qwen3 downloaded")
    screen.expect(">>>")
    assert daemon.bodies(Route.LOAD) == [{"model": "qwen"}, {"model": "qwen3"}]


def test_yes_downloads_and_only_the_answer_is_on_standard_output(daemon, download, ctl):
    result = ctl("run", "qwen", "hello", "--yes")
    assert (result.returncode, result.stdout) == (0, "Hello there\n")
    assert "qwen3 downloaded" in result.stderr


def test_missing_model_without_a_terminal_is_an_error(daemon, download, ctl):
    result = ctl("run", "qwen", "hello")
    assert result.returncode == 4
    assert daemon.bodies(PullRoute.PULLS) == []
