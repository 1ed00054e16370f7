"""`osaurusctl logs` shows what was logged, whatever becomes of the file meanwhile."""

import datetime
import json
import signal

import pytest

from osaurusctl import log_file

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.UTC)


def line(event, level="info", minutes_ago=0, **fields):
    when = (NOW - datetime.timedelta(minutes=minutes_ago)).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, "level": level, "logger": "x", "timestamp": when, **fields}) + "\n"


@pytest.fixture
def log(home):
    path = home / "logs" / "osaurusd.log"
    path.parent.mkdir()
    return path


def events(result):
    return [json.loads(text)["event"] for text in result.stdout.splitlines()]


def test_the_last_lines_are_shown_rotated_ones_included(invoke, log):
    log.with_name("osaurusd.log.10").write_text(line("oldest"))
    log.with_name("osaurusd.log.2").write_text(line("older"))
    log.with_name("osaurusd.log.1").write_text(line("old"))
    log.write_text(line("new", port=1, text="a b"))
    assert events(invoke("logs", "--json")) == ["oldest", "older", "old", "new"]
    assert events(invoke("logs", "-n", "2", "--json")) == ["old", "new"]
    assert invoke("logs", "-n", "0").stdout == ""
    shown = invoke("logs", "-n", "1").stdout
    assert shown.endswith(' info    new port=1 text="a b"\n')


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", ["d", "i", "w", "e"]), ("info", ["i", "w", "e"]), ("warning", ["w", "e"]), ("error", ["e"])],
)
def test_a_level_is_the_least_that_is_shown(invoke, log, level, shown):
    log.write_text(line("d", "debug") + line("i") + line("w", "warning") + line("e", "error"))
    assert events(invoke("logs", "--level", level, "--json")) == shown


def test_since_is_a_span_or_a_time(invoke, log):
    log.write_text(line("early", minutes_ago=90) + line("late", minutes_ago=30))
    assert events(invoke("logs", "--since", "2026-01-31T11:00:00+00:00", "--json")) == ["late"]
    assert invoke("logs", "--since", "0s", "--json").stdout == ""
    assert events(invoke("logs", "--since", "100000d", "--json")) == ["early", "late"]
    assert log_file.parse_since("1.5h", NOW) == NOW - datetime.timedelta(minutes=90)
    assert invoke("logs", "--since", "yesterday").exit_code == 2


def test_what_is_no_json_is_shown_as_it_is_and_tracebacks_whole(invoke, log):
    log.write_text("plain words\n[1]\n" + line("bad", "error", exception="Traceback\n  x\nValueError: y"))
    shown = invoke("logs").stdout.splitlines()
    assert "plain words" in shown[0]
    assert "[1]" in shown[1]
    assert shown[-1] == "ValueError: y"


def test_no_log_is_said(invoke, home):
    result = invoke("logs")
    assert result.exit_code == 1
    assert "there is no log at" in result.stderr


def test_following_goes_on_through_a_rotation(spawn, log):
    log.write_text(line("before"))
    process = spawn("logs", "-f", "--json")

    def shown():
        return json.loads(process.stdout.readline())["event"]

    assert shown() == "before"
    with log.open("a") as stream:
        text = line("half")
        stream.write(text[:10])
        stream.flush()
        stream.write(text[10:])
    assert shown() == "half"
    with log.open("a") as stream:
        stream.write(line("last of the old"))
        log.rename(log.with_name("osaurusd.log.1"))
        stream.write(line("later still"))
    log.write_text(line("first of the new"))
    assert [shown(), shown(), shown()] == ["last of the old", "later still", "first of the new"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_following_waits_for_a_log_that_is_not_there_yet(spawn, log):
    process = spawn("logs", "-f", "--json")
    log.write_text(line("at last"))
    assert json.loads(process.stdout.readline())["event"] == "at last"
