"""`osaurusctl run` as a conversation on a terminal."""

import signal

import pytest

from osaurusctl.chat import display
from osaurusctl.chat.conversation import Conversation
from osaurusctl.chat.display import View
from osaurusctl.chat.prompt import PromptReader
from osaurusctl.chat.stream import ChatOptions
from osaurusctl.client import Client
from osaurusctl.output import Output
from osaurusd.wire.admin import Route
from osaurusd.wire.errors import ErrorBody
from tests.images import PNG, data_url

CHAT = "/v1/chat/completions"
PROMPT = ">>>"


@pytest.fixture
def chat(daemon, terminal):
    screen = terminal("run", "llama", "--system", "Be brief.")
    screen.expect(PROMPT)
    return screen


def send(chat, text):
    chat.type(f"{text}\r")
    chat.expect(text)


def message_contents(body):
    return [message["content"] for message in body["messages"]]


def test_requests_contain_the_history_until_it_is_cleared(daemon, chat):
    """The model is loaded before the first question."""
    assert daemon.bodies(Route.LOAD) == [{"model": "llama"}]
    daemon.answers.extend([["Good ", "day"], ["Fine"]])
    send(chat, "hello")
    chat.expect("Good day\r\n")
    chat.expect(PROMPT)
    send(chat, "how are you")
    chat.expect("Fine\r\n")
    chat.expect(PROMPT)
    assert message_contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "hello", "Good day", "how are you"]

    send(chat, "/clear")
    chat.expect("conversation cleared")
    chat.expect(PROMPT)
    send(chat, "again")
    chat.expect("Hello there")
    assert message_contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "again"]


def test_bye_ends_the_conversation(daemon, chat):
    chat.type("/bye\r")
    assert chat.end()[1] == 0
    assert daemon.bodies(CHAT) == []


def test_empty_line_sends_no_request_and_ctrl_d_ends_the_conversation(daemon, chat):
    chat.type("\r")
    # What this prints follows the empty line; the first prompt may be drawn twice.
    send(chat, "/clear")
    chat.expect("conversation cleared")
    chat.expect(PROMPT)
    chat.type("\x04")
    shown, code = chat.end()
    assert code == 0
    assert "error" not in shown
    assert daemon.bodies(CHAT) == []


def test_ctrl_c_discards_the_line_or_a_question_without_an_answer(daemon, chat):
    chat.type("half a thou")
    chat.expect("half a thou")
    chat.type("\x03")
    chat.expect(PROMPT)
    daemon.answers.append([daemon.HOLD])
    send(chat, "a story")
    assert daemon.chat_started.wait(60)
    chat.type("\x03")
    chat.expect(PROMPT)
    send(chat, "hello")
    chat.expect("Hello there")
    assert message_contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "hello"]


def test_ctrl_c_stops_the_answer_and_keeps_it_in_the_history(daemon, chat):
    daemon.answers.append(["Once upon", daemon.HOLD])
    send(chat, "a story")
    chat.expect("Once upon")
    chat.type("\x03")
    chat.expect(PROMPT)
    assert daemon.client_disconnected.wait(60)
    send(chat, "go on")
    chat.expect("Hello there")
    assert message_contents(daemon.bodies(CHAT)[-1]) == ["Be brief.", "a story", "Once upon", "go on"]


def test_ctrl_c_just_after_the_end_of_an_answer_continues_the_conversation(daemon, home, monkeypatch):
    prompts = iter(["first", "second"])
    monkeypatch.setattr(PromptReader, "read", lambda _: next(prompts, None))
    monkeypatch.setattr(display, "show_notes", lambda *_: signal.raise_signal(signal.SIGINT))
    client = Client(home / "run" / "admin.sock")
    Conversation(client, ChatOptions(model="llama"), View(), Output()).run()
    assert message_contents(daemon.bodies(CHAT)[-1]) == ["first", "Hello there", "second"]


def test_error_on_the_first_question_ends_the_conversation(daemon, chat):
    daemon.fail(CHAT, "insufficient_memory", "out of memory", status=503)
    chat.type("hello\r")
    shown, code = chat.end()
    assert code == 5
    assert "out of memory" in shown


def test_later_error_keeps_the_conversation(daemon, chat):
    crash = ErrorBody(message="the worker crashed", type="server_error", code="worker_crashed")
    daemon.answers.extend([["One"], ["Tw", crash], ["Three"]])
    send(chat, "first")
    chat.expect("One")
    chat.expect(PROMPT)
    send(chat, "second")
    chat.expect("the worker crashed")
    chat.expect(PROMPT)
    send(chat, "third")
    chat.expect("Three")
    chat.expect(PROMPT)
    assert message_contents(daemon.bodies(CHAT)[-1])[:3] == ["Be brief.", "first", "One"]
    assert message_contents(daemon.bodies(CHAT)[-1])[-1] == "third"
    chat.type("\x04")
    assert chat.end()[1] == 0


def test_unknown_model_is_reported_before_the_prompt(daemon, terminal):
    daemon.fail(Route.LOAD, "model_not_found", "no model `llama`", status=404)
    screen = terminal("run", "llama")
    screen.expect("Download llama now? [Y/n] ")
    screen.type("n\n")
    shown, code = screen.end()
    assert code == 4
    assert PROMPT not in shown
    assert (shown.count("no model `llama`"), shown.count("nothing downloaded")) == (1, 1)


def test_prompt_argument_on_a_terminal_is_answered_once(daemon, terminal):
    shown, code = terminal("run", "llama", "hello").end()
    assert code == 0
    assert shown.endswith("Hello there\r\n")


def test_truncated_answer_is_followed_by_a_note_on_a_new_line(daemon, terminal):
    screen = terminal("run", "llama", "--max-tokens", "2")
    screen.expect(PROMPT)
    send(screen, "hello")
    screen.expect("Hello there\r\n")
    screen.expect("the answer was truncated")


def test_pasted_or_quoted_lines_are_one_prompt(daemon, chat):
    chat.type("\x1b[200~first line\r\n\r\n/second line\x1b[201~\r")
    chat.expect("Hello there")
    chat.expect(PROMPT)
    chat.type('"""one\r')
    chat.expect("...")
    chat.type('two"""\r')
    chat.expect("Hello there")
    assert message_contents(daemon.bodies(CHAT)[-1]) == [
        "Be brief.",
        "first line\n\n/second line",
        "Hello there",
        "one\ntwo",
    ]


def test_unknown_command_is_an_error_and_no_prompt(daemon, chat):
    send(chat, "/nope")
    chat.expect("unknown command /nope")
    chat.expect(PROMPT)
    send(chat, "/system Be verbose.")
    chat.expect("system prompt: Be verbose.")
    send(chat, "hello")
    chat.expect("Hello there")
    assert message_contents(daemon.bodies(CHAT)[-1]) == ["Be verbose.", "hello"]


def test_files_precede_the_first_prompt_only(daemon, terminal, home):
    (home / "notes.txt").write_text("milk")
    (home / "cat.png").write_bytes(PNG)
    screen = terminal("run", "llama", "--file", "notes.txt", "--image", "cat.png")
    screen.expect(PROMPT)
    send(screen, "What is it?")
    screen.expect("Hello there")
    screen.expect(PROMPT)
    send(screen, "Why?")
    screen.expect("Hello there")
    first, _, second = message_contents(daemon.bodies(CHAT)[-1])
    assert first[0] == {"type": "text", "text": "notes.txt:\n```\nmilk\n```\n\nWhat is it?"}
    assert first[1]["type"] == "image_url"
    assert second == "Why?"


def test_images_are_attached_by_command_and_by_pasted_path(daemon, terminal, home):
    for name in ("my cat.png", "dog.png"):
        (home / name).write_bytes(PNG)
    screen = terminal("run", "llama")
    screen.expect(PROMPT)
    send(screen, f"/image '{home}/my cat.png'")
    screen.expect("attached my cat.png")
    screen.expect(PROMPT)
    screen.type(f"{home}/dog.png Which one barks?\r")
    screen.expect("attached dog.png")
    screen.expect("Hello there")
    screen.expect(PROMPT)
    send(screen, f"/save {home}/chat.json")
    screen.expect("conversation saved")
    send(screen, "/clear")
    screen.expect("cleared")
    send(screen, f"/load {home}/chat.json")
    screen.expect("loaded a conversation of 2 messages")
    send(screen, "Why?")
    screen.expect("Hello there")
    image = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
    question = [{"type": "text", "text": "Which one barks?"}, image, image]
    assert message_contents(daemon.bodies(CHAT)[0]) == [question]
    assert message_contents(daemon.bodies(CHAT)[1]) == [question, "Hello there", "Why?"]


def test_earlier_prompts_are_offered_in_the_next_conversation(daemon, terminal):
    for index in range(2):
        screen = terminal("run", "llama")
        screen.expect(PROMPT)
        screen.type("remember me\r" if index == 0 else "\x1b[A\r")
        screen.expect("Hello there")
        screen.expect(PROMPT)
        screen.type("\x04")
        assert screen.end()[1] == 0
    assert [message_contents(body) for body in daemon.bodies(CHAT)] == [["remember me"]] * 2
