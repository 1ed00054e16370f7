"""`osaurusctl logs`: filters, rotated files and --follow."""

import datetime
import json
import signal

import pytest

from osaurusctl import log_file

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.UTC)


def log_line(event, level="info", minutes_ago=0, **fields):
    when = (NOW - datetime.timedelta(minutes=minutes_ago)).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, "level": level, "logger": "x", "timestamp": when, **fields}) + "\n"


@pytest.fixture
def log(home):
    path = home / "logs" / "osaurusd.log"
    path.parent.mkdir()
    return path


def events(result):
    return [json.loads(text)["event"] for text in result.stdout.splitlines()]


def test_last_lines_include_rotated_files(invoke, log):
    log.with_name("osaurusd.log.10").write_text(log_line("oldest"))
    log.with_name("osaurusd.log.2").write_text(log_line("older"))
    log.with_name("osaurusd.log.1").write_text(log_line("old"))
    log.write_text(log_line("new", port=1, text="a b"))
    assert events(invoke("logs", "--json")) == ["oldest", "older", "old", "new"]
    assert events(invoke("logs", "-n", "2", "--json")) == ["old", "new"]
    assert invoke("logs", "-n", "0").stdout == ""
    shown = invoke("logs", "-n", "1").stdout
    assert shown.endswith(' info    new port=1 text="a b"\n')


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", ["d", "i", "w", "e"]), ("info", ["i", "w", "e"]), ("warning", ["w", "e"]), ("error", ["e"])],
)
def test_level_is_the_minimum(invoke, log, level, shown):
    log.write_text(log_line("d", "debug") + log_line("i") + log_line("w", "warning") + log_line("e", "error"))
    assert events(invoke("logs", "--level", level, "--json")) == shown


def test_since_is_a_duration_or_a_time(invoke, log):
    log.write_text(log_line("early", minutes_ago=90) + log_line("late", minutes_ago=30))
    assert events(invoke("logs", "--since", "2026-01-31T11:00:00+00:00", "--json")) == ["late"]
    assert invoke("logs", "--since", "0s", "--json").stdout == ""
    assert events(invoke("logs", "--since", "100000d", "--json")) == ["early", "late"]
    assert log_file.parse_since("1.5h", NOW) == NOW - datetime.timedelta(minutes=90)
    assert invoke("logs", "--since", "yesterday").exit_code == 2


def test_plain_text_lines_and_tracebacks_are_shown(invoke, log):
    log.write_text("plain text\n[1]\n" + log_line("bad", "error", exception="Traceback\n  x\nValueError: y"))
    shown = invoke("logs").stdout.splitlines()
    assert "plain text" in shown[0]
    assert "[1]" in shown[1]
    assert shown[-1] == "ValueError: y"


def test_missing_log_is_an_error(invoke, home):
    result = invoke("logs")
    assert result.exit_code == 1
    assert "no log file at" in result.stderr


def test_follow_continues_after_a_rotation(spawn, log):
    log.write_text(log_line("first"))
    process = spawn("logs", "-f", "--json")

    def next_event():
        return json.loads(process.stdout.readline())["event"]

    assert next_event() == "first"
    with log.open("a") as stream:
        text = log_line("split")
        stream.write(text[:10])
        stream.flush()
        stream.write(text[10:])
    assert next_event() == "split"
    with log.open("a") as stream:
        stream.write(log_line("before rotation"))
        log.rename(log.with_name("osaurusd.log.1"))
        stream.write(log_line("during rotation"))
    log.write_text(log_line("after rotation"))
    assert [next_event(), next_event(), next_event()] == ["before rotation", "during rotation", "after rotation"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_follow_waits_until_the_log_exists(spawn, log):
    process = spawn("logs", "-f", "--json")
    log.write_text(log_line("created"))
    assert json.loads(process.stdout.readline())["event"] == "created"
