"""What is logged ends in the file, as JSON, for its owner's eyes only."""

import io
import json
import logging
import os
import stat

import pytest
import structlog

from osaurusd import log

logger = log.get_logger("test")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def file(tmp_path):
    return tmp_path / "osaurusd.log"


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_holds_json_lines(file):
    with log.configured("info", file, None):
        logger.info("serving", port=8080, path=file, text="Grüße\n🦕")
        logger.warning("careful")
    first, second = lines(file)
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "serving",
        "level": "info",
        "logger": "test",
        "port": 8080,
        "path": repr(file),
        "text": "Grüße\n🦕",
    }
    assert (second["event"], second["level"]) == ("careful", "warning")


def test_other_libraries_records_are_json_lines_too(file):
    with log.configured("info", file, None):
        logging.getLogger("aiohttp.server").warning("%d of %s", 1, "them")
    (line,) = lines(file)
    assert (line["event"], line["level"], line["logger"]) == ("1 of them", "warning", "aiohttp.server")
    assert line["timestamp"].endswith("Z")


def test_context_variables_are_included(file):
    with log.configured("info", file, None):
        with structlog.contextvars.bound_contextvars(request_id="abc"):
            logger.info("inside")
        logger.info("outside")
    inside, outside = lines(file)
    assert inside["request_id"] == "abc"
    assert "request_id" not in outside


def test_exceptions_are_recorded_with_their_tracebacks(file):
    with log.configured("info", file, None):
        try:
            raise ValueError("the reason")
        except ValueError as error:
            logger.error("ours", exc_info=error)  # noqa: TRY400  as web.errors does it
            logging.getLogger("theirs").exception("theirs")
    for line, event in zip(lines(file), ("ours", "theirs"), strict=True):
        assert line["event"] == event
        assert "Traceback (most recent call last)" in line["exception"]
        assert "test_log.py" in line["exception"]
        assert "ValueError: the reason" in line["exception"]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_is_the_least_that_is_logged(file, level, events):
    with log.configured(level, file, None):
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)(name)
    assert [line["event"] for line in lines(file)] == events


def test_the_level_can_be_changed_while_it_runs(file):
    with log.configured("warning", file, None):
        logger.info("too early")
        log.set_level("info")
        logger.info("now")
    assert [line["event"] for line in lines(file)] == ["now"]


def test_aiohttp_does_not_log_requests_a_second_time(file):
    with log.configured("info", file, None):
        logging.getLogger("aiohttp.access").info("GET /")
    assert lines(file) == []


def test_what_cannot_be_json_is_written_somehow(file):
    with log.configured("info", file, None):
        logger.info("odd", thing={1, 2}, name="\udcff")
    (line,) = lines(file)
    assert (line["thing"], line["name"]) == ("{1, 2}", "\udcff")


@pytest.mark.usefixtures("open_umask")
def test_the_file_is_for_its_owner_only(file):
    with log.configured("info", file, None):
        logger.info("private")
        assert mode(file) == 0o600
    assert mode(file) == 0o600


def test_a_file_that_was_open_to_others_is_closed_to_them(file):
    file.write_text('{"event": "before"}\n')
    file.chmod(0o644)
    with log.configured("info", file, None):
        logger.info("after")
    assert mode(file) == 0o600
    assert [line["event"] for line in lines(file)] == ["before", "after"]


@pytest.mark.usefixtures("open_umask")
def test_rotated_files_stay_with_their_owner_and_have_an_end(tmp_path, file, monkeypatch):
    monkeypatch.setattr(log, "MAX_BYTES", 2000)
    monkeypatch.setattr(log, "BACKUPS", 2)
    with log.configured("info", file, None):
        for number in range(100):
            logger.info("line", number=number)
    names = ["osaurusd.log", "osaurusd.log.1", "osaurusd.log.2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [mode(tmp_path / name) for name in names] == [0o600] * 3
    assert all((tmp_path / name).stat().st_size <= 2000 for name in names)
    kept = [line["number"] for name in reversed(names) for line in lines(tmp_path / name)]
    assert kept == list(range(kept[0], 100))


def test_a_terminal_gets_readable_lines(file):
    terminal = Terminal()
    with log.configured("info", file, terminal):
        logger.info("serving", port=8080)
        try:
            raise ValueError("the reason")
        except ValueError:
            logger.exception("bad")
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    assert "serving" in shown
    assert "8080" in shown
    assert "ValueError: the reason" in shown
    assert '"event"' not in shown
    assert [line["event"] for line in lines(file)] == ["serving", "bad"]


def test_a_terminal_is_not_controlled_by_what_clients_send(file):
    terminal = Terminal()
    with log.configured("info", file, terminal):
        logger.info("request", path="/\x1b[2J\x07")
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


def test_what_is_no_terminal_gets_the_json(file):
    console = io.StringIO()
    with log.configured("info", file, console):
        logger.info("serving", port=8080)
    assert console.getvalue() == file.read_text(encoding="utf-8")
    assert lines(file)[0]["port"] == 8080


def test_nothing_is_printed_without_a_console(file, capfd):
    with log.configured("info", file, None):
        logger.error("quiet")
    assert capfd.readouterr() == ("", "")
    assert len(lines(file)) == 1


def test_all_that_was_logged_is_in_the_file_once_the_block_ends(file):
    with log.configured("info", file, None):
        for number in range(1000):
            logger.info("line", number=number)
    assert [line["number"] for line in lines(file)] == list(range(1000))


def test_a_block_that_fails_leaves_its_last_words(file):
    def run():
        with log.configured("info", file, None):
            logger.info("last words")
            raise RuntimeError("ended")

    with pytest.raises(RuntimeError, match="ended"):
        run()
    assert [line["event"] for line in lines(file)] == ["last words"]
    assert [] == logging.getLogger().handlers


def test_it_can_be_configured_again(tmp_path):
    for name in ("one", "two"):
        with log.configured("info", tmp_path / name, None):
            logger.info(name)
    assert [lines(tmp_path / name)[0]["event"] for name in ("one", "two")] == ["one", "two"]
    assert [len(lines(tmp_path / name)) for name in ("one", "two")] == [1, 1]


def test_a_file_that_cannot_be_written_is_a_fault_until_it_can(file, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device", str(file))

    with log.configured("info", file, None):
        assert log.faults() == []
    with monkeypatch.context() as patched:
        patched.setattr(log._OwnerOnlyRotation, "_open", full)
        with log.configured("info", file, None):
            assert "No space left on device" in log.faults()[0]
            patched.undo()
            logger.info("there is room again")
        assert log.faults() == []
    assert lines(file)[-1]["event"] == "there is room again"


@pytest.mark.parametrize("terminal", [None, io.StringIO(), Terminal()])
def test_secrets_are_taken_out_of_every_record_whoever_logs_it(file, terminal):
    with log.configured("debug", file, terminal):
        logger.info("asked", headers={"authorization": "PLANTED"}, url="https://a/b?sig=PLANTED", token="PLANTED")
        logging.getLogger("library").debug("%s said hf_PLANTED0123", "https://u:PLANTED@proxy")
        try:
            raise ValueError("Bearer PLANTED")
        except ValueError:
            logger.exception("failed")

    shown = file.read_text() + (terminal.getvalue() if terminal else "")
    assert "PLANTED" not in shown
    assert len(lines(file)) == 3
    assert shown.count("[redacted]") >= 6


def test_prompts_that_are_logged_on_purpose_are_logged_as_they_are(file):
    prompt = [{"role": "user", "content": "What is a token: how does max_tokens=5 work, and a key?"}]
    with log.configured("info", file, None):
        logger.info("prompt", prompts=prompt)
    assert lines(file)[0]["prompts"] == prompt
