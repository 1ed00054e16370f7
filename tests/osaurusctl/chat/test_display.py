"""How answers appear on a terminal."""

import pytest

from osaurusd.wire.admin import Route

CHAT = "/v1/chat/completions"
REASONING = [{"reasoning_content": "Let me "}, {"reasoning_content": "think."}, "Yes", "."]


def test_markdown_is_rendered(daemon, terminal):
    daemon.answers.append(["# Title\n", "\n**bold**\n\n- one\n- two\n\n", "the end"])
    screen = terminal("run", "llama", "hello")
    assert screen.end()[1] == 0
    assert [line.strip() for line in screen.lines()] == ["Title", "bold", "• one", "• two", "the end"]


@pytest.mark.parametrize("plain", ["option", "dumb terminal", "format"])
def test_markdown_is_not_rendered_on_request(daemon, terminal, monkeypatch, plain):
    if plain == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    options = {"option": ["--plain"], "format": ["--format", "json"]}.get(plain, [])
    daemon.answers.append(["**bold**"])
    screen = terminal("run", "llama", "hello", *options)
    assert screen.end()[1] == 0
    assert screen.lines() == ["**bold**"]


def test_spinner_shows_loading_and_prefill_and_then_disappears(daemon, terminal):
    daemon.answers.append([{"prompt_progress": {"total": 200, "processed": 100}}, "Hello"])
    screen = terminal("run", "llama", "hello")
    screen.expect("loading llama")
    screen.expect("waiting")
    screen.expect("prefill 50%")
    assert screen.end()[1] == 0
    assert screen.lines() == ["Hello"]
    assert daemon.bodies(Route.LOAD) == [{"model": "llama"}]
    assert daemon.bodies(CHAT)[0]["return_progress"] is True


def test_reasoning_is_dimmed(daemon, terminal):
    daemon.answers.append(REASONING)
    screen = terminal("run", "llama", "hello")
    shown, _ = screen.end()
    assert "\x1b[2mthink.\x1b[0m" in shown
    assert screen.lines() == ["Let me think.", "Yes."]


def test_reasoning_is_hidden_on_request(daemon, terminal):
    daemon.answers.append([*REASONING[:2], daemon.HOLD])
    screen = terminal("run", "llama", "hello", "--hide-thinking")
    screen.expect("thinking")
    assert "Let me" not in screen.output


def test_answer_cannot_control_the_terminal(daemon, terminal):
    daemon.answers.append(["\x1b]0;evil\x07", "a\x9bb\rc"])
    shown, _ = terminal("run", "llama", "hello").end()
    assert "]0;evilabc" in shown
    assert "\x1b]" not in shown


def test_ctrl_c_stops_the_spinner(daemon, terminal):
    daemon.answers.append([daemon.HOLD])
    screen = terminal("run", "llama", "hello")
    screen.expect("waiting")
    assert daemon.chat_started.wait(60)
    screen.type("\x03")
    shown, code = screen.end()
    assert code == 130
    assert "Traceback" not in shown
    assert daemon.client_disconnected.wait(60)
