"""Reading prompts from a terminal."""

import contextlib
import json
import signal
import stat

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from osaurusctl.chat.prompt import CommandCompleter, PromptHistory, PromptReader, is_open, unquote

PASTE, PASTE_END, ENTER, ALT_ENTER, UP = "\x1b[200~", "\x1b[201~", "\r", "\x1b\r", "\x1b[A"


@pytest.fixture
def history(tmp_path):
    return tmp_path / "state" / "prompt_history"


@pytest.fixture
def read(history):
    """Type on a new terminal, and return the prompts that are read."""

    def type_and_read(*texts):
        with create_pipe_input() as source:
            reader = PromptReader(history, ["/help", "/save"], source=source, screen=DummyOutput())
            prompts = []
            for text in texts:
                source.send_text(text)
                prompts.append(reader.read())
            return prompts

    return type_and_read


def test_paste_is_one_prompt(read):
    assert read(f"{PASTE}one\r\ntwo\n\nthree{PASTE_END}{ENTER}") == ["one\ntwo\n\nthree"]


def test_quotes_enclose_a_prompt_of_several_lines(read):
    assert read(f'"""one{ENTER}two{ENTER}"""{ENTER}', f'"""short"""{ENTER}') == ["one\ntwo", "short"]


def test_alt_enter_starts_a_new_line(read):
    assert read(f"one{ALT_ENTER}two{ENTER}") == ["one\ntwo"]


def test_ctrl_c_discards_the_prompt_and_ctrl_d_ends_the_input(read):
    assert read("half\x03", "\x04") == ["", None]


def test_ctrl_c_between_the_prompt_and_its_answer_discards_the_prompt(history, monkeypatch):
    """The terminal has left the raw mode, so Ctrl-C is a signal, but the event loop still runs."""
    with create_pipe_input() as source:
        raw_mode = source.raw_mode

        @contextlib.contextmanager
        def interrupt_afterwards():
            with raw_mode():
                yield
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(source, "raw_mode", interrupt_afterwards)
        source.send_text(f"hello{ENTER}")
        assert PromptReader(history, [], source=source, screen=DummyOutput()).read() == ""


@pytest.mark.parametrize(("text", "commands"), [("/", ["/help", "/save"]), ("/he", ["/help"]), ("he", [])])
def test_commands_are_completed(text, commands):
    completions = CommandCompleter(["/help", "/save"]).get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in completions] == commands


def test_history_continues_in_the_next_session(read, history):
    read(f'"""one{ENTER}two"""{ENTER}', f"three{ENTER}")

    assert read(f"{UP}{ENTER}", f"{UP}{UP}{ENTER}") == ["three", "one\ntwo"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_history_ignores_damaged_lines_and_long_prompts(history):
    history.parent.mkdir()
    history.write_text('"one"\n{"a": 1}\n[broken\n\n')
    PromptHistory(history).store_string("x" * 20_000)
    PromptHistory(history).store_string("two")

    assert list(PromptHistory(history).load_history_strings()) == ["two", "one"]


def test_history_is_shortened(history):
    history.parent.mkdir()
    history.write_text("".join(f'"{number}"\n' for number in range(2001)))

    assert list(PromptHistory(history).load_history_strings())[:2] == ["2000", "1999"]
    assert [json.loads(line) for line in history.read_text().splitlines()] == [str(n) for n in range(1001, 2001)]


def test_history_that_cannot_be_written_is_no_error(history):
    history.parent.write_text("a file instead of the folder")

    PromptHistory(history).store_string("one")

    assert list(PromptHistory(history).load_history_strings()) == []


@pytest.mark.parametrize(
    ("text", "is_incomplete", "prompt"),
    [
        ("", False, ""),
        ("one", False, "one"),
        ('"""', True, '"""'),
        ('""""', True, '""""'),
        ('"""one', True, '"""one'),
        ('""""""', False, ""),
        ('"""\none\n"""', False, "one"),
        ('say """ twice', False, 'say """ twice'),
    ],
)
def test_quotes_are_removed_once_they_are_closed(text, is_incomplete, prompt):
    assert (is_open(text), unquote(text)) == (is_incomplete, prompt)
