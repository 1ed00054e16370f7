"""Commands inside a conversation."""

import stat

import pytest

from osaurusctl.chat import slash
from osaurusctl.chat.conversation import Conversation
from osaurusctl.chat.display import View
from osaurusctl.chat.stream import ChatOptions
from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.output import Output

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello there"}]


@pytest.fixture
def conversation(home):
    result = Conversation(Client(home / "run" / "admin.sock"), ChatOptions(model="llama"), View(), Output())
    result.messages = list(MESSAGES)
    return result


@pytest.fixture
def run(conversation, capsys):
    """Run a command and return what it prints."""

    def run_command(line):
        slash.run(conversation, line)
        return capsys.readouterr().err

    return run_command


@pytest.mark.parametrize("line", ["/nope", "/", "/helpme", "/set nope 1", "/set temperature 3", "/set seed x"])
def test_unknown_words_and_wrong_values_are_errors(run, line):
    with pytest.raises(CliError):
        run(line)


def test_error_for_a_wrong_value_says_what_is_accepted(run):
    with pytest.raises(CliError, match=r'^invalid value "3"$') as raised:
        run("/set temperature 3")
    assert raised.value.hint == 'use 0 to 2, or "default"'


@pytest.mark.parametrize(
    ("line", "unknown"), [("/nope", True), ("/nope now", True), ("/etc/hosts is a file?", False), ("/a\nb", False)]
)
def test_prompt_that_begins_with_a_path_is_not_a_command(line, unknown):
    assert slash.is_unknown_command(line) == unknown


def test_error_for_an_unknown_command_mentions_help(run):
    with pytest.raises(CliError, match="unknown command /nope") as raised:
        run("/nope now")
    assert "/help" in raised.value.hint


def test_help_lists_every_command(run):
    text = run("/help")
    assert [command for command in slash.COMMANDS if f"{command} " not in text] == []


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/set temperature 0.5", "temperature", 0.5),
        ("/set max-tokens 7", "max_tokens", 7),
        ("/set seed 3", "seed", 3),
        ("/set format json", "response_format", {"type": "json_object"}),
        ("/system Be brief.", "system", "Be brief."),
    ],
)
def test_parameters_are_set_and_reset(conversation, run, line, field, value):
    run(line)
    assert getattr(conversation.options, field) == value
    run("/system default" if field == "system" else f"{line.rpartition(' ')[0]} default")
    assert getattr(conversation.options, field) is None


@pytest.mark.parametrize("field", ["thinking", "markdown", "verbose"])
def test_switches_are_on_or_off(conversation, run, field):
    for value in ("on", "off"):
        assert run(f"/set {field} {value}") == f"{field}: {value}\n"
        assert getattr(conversation.view, field) is (value == "on")
    with pytest.raises(CliError):
        run(f"/set {field} maybe")


def test_set_lists_the_settings_and_names_the_values_of_one(run):
    assert "temperature  default" in run("/set")
    with pytest.raises(CliError, match="0 to 2"):
        run("/set temperature")


def test_conversation_is_saved_and_loaded(conversation, run, tmp_path):
    path = tmp_path / "chat.json"
    run("/system Be brief.")
    run(f"/save {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    run("/clear")
    run("/system default")
    assert conversation.messages == []
    assert "2 messages" in run(f"/load {path}")
    assert conversation.messages == MESSAGES
    assert conversation.options.system == "Be brief."
    run(f"/save {path}")


def test_model_stays_when_a_conversation_with_another_one_is_loaded(conversation, run, tmp_path):
    run(f"/save {tmp_path}/chat.json")
    conversation.update_options(model="qwen")
    assert "messages with llama" in run(f"/load {tmp_path}/chat.json")
    assert conversation.options.model == "qwen"


@pytest.mark.parametrize("content", ["not JSON", "{}", '{"model": "a", "messages": [], "options": {"seed": "x"}}'])
def test_other_files_are_not_loaded(run, tmp_path, content):
    (tmp_path / "other").write_text(content)
    with pytest.raises(CliError, match="not a saved conversation"):
        run(f"/load {tmp_path}/other")


def test_other_files_are_not_overwritten(run, tmp_path):
    (tmp_path / "other").write_text("precious")
    with pytest.raises(CliError):
        run(f"/save {tmp_path}/other")
    assert (tmp_path / "other").read_text() == "precious"


@pytest.mark.parametrize("line", ["/save", "/load", "/load /nonexistent/file", "/save /nonexistent/file"])
def test_path_must_be_given_and_usable(run, line):
    with pytest.raises(CliError):
        run(line)


def test_show_has_the_model_and_the_context_in_use(conversation, daemon, fake, run):
    daemon.details["llama"] = fake.details("llama")
    conversation.usage = {"total_tokens": 22}
    assert "context       22 of 131072 tokens" in run("/show")


def test_bye_ends_the_conversation(conversation, run):
    run("/bye")
    assert conversation.ended
