"""Records reach the file as JSON lines that only the owner can read."""

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


def test_records_of_other_libraries_are_json_lines_too(file):
    with log.configured("info", file, None):
        logging.getLogger("aiohttp.server").warning("%d of %s", 1, "many")
    (line,) = lines(file)
    assert (line["event"], line["level"], line["logger"]) == ("1 of many", "warning", "aiohttp.server")
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
            logger.error("daemon", exc_info=error)  # noqa: TRY400  as http.errors does
            logging.getLogger("library").exception("library")
    for line, event in zip(lines(file), ("daemon", "library"), strict=True):
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
def test_less_severe_records_are_not_logged(file, level, events):
    with log.configured(level, file, None):
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)(name)
    assert [line["event"] for line in lines(file)] == events


def test_the_level_can_be_changed_at_run_time(file):
    with log.configured("warning", file, None):
        logger.info("too early")
        log.set_level("info")
        logger.info("now")
    assert [line["event"] for line in lines(file)] == ["now"]


def test_aiohttp_does_not_log_requests_again(file):
    with log.configured("info", file, None):
        logging.getLogger("aiohttp.access").info("GET /")
    assert lines(file) == []


def test_values_that_are_not_json_are_written_as_text(file):
    with log.configured("info", file, None):
        logger.info("odd", value={1, 2}, name="\udcff")
    (line,) = lines(file)
    assert (line["value"], line["name"]) == ("{1, 2}", "\udcff")


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_can_read_the_file(file):
    with log.configured("info", file, None):
        logger.info("private")
        assert mode(file) == 0o600
    assert mode(file) == 0o600


def test_the_mode_of_an_existing_file_is_corrected(file):
    file.write_text('{"event": "before"}\n')
    file.chmod(0o644)
    with log.configured("info", file, None):
        logger.info("after")
    assert mode(file) == 0o600
    assert [line["event"] for line in lines(file)] == ["before", "after"]


@pytest.mark.usefixtures("open_umask")
def test_rotated_files_are_private_and_bounded(tmp_path, file, monkeypatch):
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


def test_a_terminal_shows_readable_lines(file):
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


def test_logged_text_cannot_control_the_terminal(file):
    terminal = Terminal()
    with log.configured("info", file, terminal):
        logger.info("request", path="/\x1b[2J\x07")
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


def test_a_console_that_is_not_a_terminal_gets_json(file):
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


def test_all_records_are_written_when_the_block_ends(file):
    with log.configured("info", file, None):
        for number in range(1000):
            logger.info("line", number=number)
    assert [line["number"] for line in lines(file)] == list(range(1000))


def test_records_are_written_when_the_block_fails(file):
    def run():
        with log.configured("info", file, None):
            logger.info("final record")
            raise RuntimeError("ended")

    with pytest.raises(RuntimeError, match="ended"):
        run()
    assert [line["event"] for line in lines(file)] == ["final record"]
    assert [] == logging.getLogger().handlers


def test_logging_can_be_configured_again(tmp_path):
    for name in ("one", "two"):
        with log.configured("info", tmp_path / name, None):
            logger.info(name)
    assert [lines(tmp_path / name)[0]["event"] for name in ("one", "two")] == ["one", "two"]
    assert [len(lines(tmp_path / name)) for name in ("one", "two")] == [1, 1]


def test_records_can_be_captured_after_logging_was_configured_again(tmp_path):
    for name in ("one", "two"):
        with log.configured("info", tmp_path / name, None):
            logger.info(name)
    with structlog.testing.capture_logs() as records:
        logger.info("captured")
    assert ["captured"] == [record["event"] for record in records]


def test_a_write_error_is_a_fault_until_a_write_succeeds(tmp_path):
    file = tmp_path / "missing" / "osaurusd.log"
    with log.configured("info", file, None) as log_file:
        assert "No such file or directory" in log_file.fault
        file.parent.mkdir()
        logger.info("recovered")
    assert log_file.fault is None
    assert [line["event"] for line in lines(file)] == ["recovered"]


@pytest.mark.parametrize("terminal", [None, io.StringIO(), Terminal()])
def test_secrets_are_redacted_from_every_record(file, terminal):
    with log.configured("debug", file, terminal):
        logger.info("request", headers={"authorization": "PLANTED"}, url="https://a/b?sig=PLANTED", token="PLANTED")
        logging.getLogger("library").debug("%s returned hf_PLANTED0123", "https://u:PLANTED@proxy")
        try:
            raise ValueError("Bearer PLANTED")
        except ValueError:
            logger.exception("failed")

    shown = file.read_text() + (terminal.getvalue() if terminal else "")
    assert "PLANTED" not in shown
    assert len(lines(file)) == 3
    assert shown.count("[redacted]") >= 6


def test_prompts_without_secrets_are_logged_unchanged(file):
    prompt = [{"role": "user", "content": "What is a token: how does max_tokens=5 work, and a key?"}]
    with log.configured("info", file, None):
        logger.info("prompt", prompts=prompt)
    assert lines(file)[0]["prompts"] == prompt
