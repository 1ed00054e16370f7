"""`osaurusctl run` at a terminal: a conversation that Ctrl-C interrupts and Ctrl-D ends."""

import pytest

from osaurusd.wire.admin import Route
from osaurusd.wire.errors import ErrorBody

CHAT = "/v1/chat/completions"
PROMPT = ">>> "


@pytest.fixture
def chat(daemon, terminal):
    screen = terminal("run", "llama", "--system", "Be brief.")
    screen.expect(PROMPT)
    return screen


def _say(chat, text):
    chat.type(f"{text}\r")
    chat.expect(f"{text}\r\n")


def _contents(body):
    return [message["content"] for message in body["messages"]]


def test_the_model_is_loaded_before_the_first_question(daemon, chat):
    assert daemon.bodies(Route.LOAD) == [{"model": "llama"}]


def test_a_conversation_remembers_what_was_said(daemon, chat):
    daemon.answers.extend([["Good ", "day"], ["Fine"]])
    _say(chat, "hello")
    chat.expect("Good day\r\n")
    chat.expect(PROMPT)
    _say(chat, "how are you")
    chat.expect("Fine\r\n")
    chat.expect(PROMPT)
    assert _contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "hello", "Good day", "how are you"]


def test_ctrl_d_ends_the_conversation(chat):
    chat.type("\x04")
    shown, code = chat.end()
    assert code == 0
    assert "error" not in shown


def test_bye_ends_the_conversation(daemon, chat):
    chat.type("/bye\r")
    assert chat.end()[1] == 0
    assert daemon.bodies(CHAT) == []


def test_clear_forgets_what_was_said(daemon, chat):
    _say(chat, "hello")
    chat.expect("Hello there")
    chat.expect(PROMPT)
    _say(chat, "/clear")
    chat.expect("forgotten")
    chat.expect(PROMPT)
    _say(chat, "again")
    chat.expect("Hello there")
    assert _contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "again"]


def test_an_empty_line_asks_nothing(daemon, chat):
    chat.type("\r")
    chat.expect(PROMPT)
    assert daemon.bodies(CHAT) == []


def test_ctrl_c_at_the_prompt_only_drops_the_line(daemon, chat):
    chat.type("half a thou")
    chat.expect("half a thou")
    chat.interrupt_prompt(PROMPT)
    _say(chat, "hello")
    chat.expect("Hello there")
    assert _contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "hello"]


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(daemon, chat):
    daemon.answers.append(["Once upon", daemon.HOLD])
    _say(chat, "a story")
    chat.expect("Once upon")
    chat.type("\x03")
    chat.expect(PROMPT)
    assert daemon.client_gone.wait(30)
    _say(chat, "go on")
    chat.expect("Hello there")
    assert _contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "a story", "Once upon", "go on"]


def test_ctrl_c_before_the_first_word_takes_the_question_back(daemon, chat):
    daemon.answers.append([daemon.HOLD])
    _say(chat, "a story")
    assert daemon.asked.wait(30)
    chat.type("\x03")
    chat.expect(PROMPT)
    _say(chat, "hello")
    chat.expect("Hello there")
    assert _contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "hello"]


def test_a_failure_on_the_first_question_ends_with_its_code(daemon, chat):
    daemon.fail(CHAT, "insufficient_memory", "no room", status=503)
    chat.type("hello\r")
    shown, code = chat.end()
    assert code == 5
    assert "no room" in shown


def test_a_failure_later_loses_no_conversation(daemon, chat):
    crash = ErrorBody(message="the worker ended", type="server_error", code="worker_crashed")
    daemon.answers.extend([["One"], ["Tw", crash], ["Three"]])
    _say(chat, "first")
    chat.expect("One")
    chat.expect(PROMPT)
    _say(chat, "second")
    chat.expect("the worker ended")
    chat.expect(PROMPT)
    _say(chat, "third")
    chat.expect("Three")
    chat.expect(PROMPT)
    assert _contents(daemon.bodies(CHAT)[-1])[:3] == ["Be brief.", "first", "One"]
    assert _contents(daemon.bodies(CHAT)[-1])[-1] == "third"
    chat.type("\x04")
    assert chat.end()[1] == 0


def test_a_model_that_is_not_there_is_said_at_once(daemon, terminal):
    daemon.fail(Route.LOAD, "model_not_found", "no model `llama`", status=404)
    shown, code = terminal("run", "llama").end()
    assert code == 4
    assert PROMPT not in shown


def test_a_prompt_at_a_terminal_is_answered_once(daemon, terminal):
    shown, code = terminal("run", "llama", "hello").end()
    assert code == 0
    assert shown == "Hello there\r\n"


def test_an_answer_that_was_cut_off_says_so_on_a_line_of_its_own(daemon, terminal):
    screen = terminal("run", "llama", "--max-tokens", "2")
    screen.expect(PROMPT)
    _say(screen, "hello")
    screen.expect("Hello there\r\nthe answer was cut off")
