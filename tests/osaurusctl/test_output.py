"""Colors, number formats, and control characters in terminal output."""

import pytest

from osaurusctl.formatting import format_bytes, format_duration, format_table


def test_errors_are_colored_on_a_terminal(terminal):
    shown, code = terminal("ls").end()
    assert code == 3
    assert "\x1b[1;31merror:\x1b[0m" in shown


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_color_can_be_disabled(terminal, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    shown, _ = terminal("ls").end()
    assert "error: osaurusd" in shown
    assert "\x1b" not in shown


def test_empty_no_color_is_ignored(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[1;31m" in terminal("ls").end()[0]


def test_pipe_gets_no_color(ctl):
    assert "\x1b" not in ctl("ls").stderr


def test_control_characters_of_an_answer_do_not_reach_the_terminal(daemon, terminal):
    daemon.answers.append(["a\x1b]0;title\x07b", "\x9bc\tend"])
    shown, code = terminal("run", "llama", "hello").end()
    assert code == 0
    assert "a]0;titlebc" in shown
    assert "\x1b" not in shown


def test_answer_in_a_pipe_is_unchanged(daemon, ctl):
    daemon.answers.append(["a\x1b[1mb"])
    assert ctl("run", "llama", "hello").stdout == "a\x1b[1mb\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
        (1_807_496_278, "1.8 GB"),
        (123_456_789_012, "123 GB"),
        (5_000_000_000_000, "5.0 TB"),
    ],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m 0s"), (3725, "1h 2m"), (86400, "1d 0h"), (200_000, "2d 7h")],
)
def test_format_duration_uses_two_units(seconds, text):
    assert format_duration(seconds) == text


def test_table_is_aligned_without_trailing_spaces():
    assert format_table([("A", "B"), ("long", ""), ("x", "yy")]) == "A     B\nlong\nx     yy"
