"""`osaurusctl import`: progress, errors and Ctrl-C."""

import errno
import json
import os
import signal
import sys

import pytest

from osaurusd.wire.admin import ImportDone, ImportErrorEvent, ImportProgress, Route
from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.quantization import QuantizationReport

STEPS = [
    ImportProgress(stage="checking", done=0, total=0),
    ImportProgress(stage="copying", done=0, total=2_000_000),
    ImportProgress(stage="copying", done=2_000_000, total=2_000_000),
]


@pytest.fixture
def folder(home):
    path = home / "some-model"
    path.mkdir()
    return path


def test_stages_are_lines_without_a_terminal(daemon, ctl, folder, fake):
    daemon.import_events = [*STEPS, ImportDone(model=fake.model("some-model"))]
    result = ctl("import", "some-model", "--name", "mine")
    assert result.returncode == 0
    assert result.stdout == "some-model imported (1.8 GB)\n"
    assert result.stderr == "checking\ncopying (2.0 MB)\n"
    (body,) = daemon.bodies(Route.IMPORTS)
    assert (str(folder), "mine") == (body["path"], body["name"])


def test_quantization_is_requested_and_its_error_is_reported(daemon, invoke, folder, fake):
    report = QuantizationReport(
        exact=3, converted=2, mean_error=0.0123, worst_error=0.0345, worst_tensor="blk.0.ffn_up.weight"
    )
    daemon.import_events = [*STEPS, ImportDone(model=fake.model("some-model"), quantization=report)]

    result = invoke("import", str(folder), "--quantize", "6", "--group-size", "64")

    (body,) = daemon.bodies(Route.IMPORTS)
    assert (body["quantize"], body["group_size"]) == ("6", 64)
    assert result.stdout.splitlines() == [
        "some-model imported (1.8 GB)",
        "3 quantized matrices are exact, 2 were converted: relative error 1.23% on average, 3.45% at most "
        "(blk.0.ffn_up.weight)",
    ]


def test_json_output_has_one_line_per_event(daemon, invoke, folder, fake):
    daemon.import_events = [*STEPS, ImportDone(model=fake.model("some-model"))]
    result = invoke("import", str(folder), "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "progress", "done"]
    assert events[-1]["model"]["name"] == "some-model"
    assert result.stderr == ""
    assert daemon.bodies(Route.IMPORTS)[0]["name"] is None


def test_terminal_shows_a_progress_bar(daemon, terminal, folder, fake):
    daemon.import_events = [*STEPS, ImportDone(model=fake.model("some-model"))]
    shown, code = terminal("import", str(folder)).end()
    assert code == 0
    assert "copying" in shown
    assert "2.0/2.0 MB" in shown
    assert "some-model imported (1.8 GB)" in shown


def test_rejected_import_is_an_error(daemon, invoke, folder):
    rejection = ErrorBody(message="config.json is missing", type="invalid_request_error", code="import_failed")
    daemon.import_events = [*STEPS, ImportErrorEvent(error=rejection)]
    result = invoke("import", str(folder))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "error: config.json is missing"


def test_rejected_import_ends_json_lines_with_the_error(daemon, invoke, folder):
    rejection = ErrorBody(message="config.json is missing", type="invalid_request_error", code="import_failed")
    daemon.import_events = [STEPS[0], ImportErrorEvent(error=rejection)]
    lines = [json.loads(line) for line in invoke("--json", "import", str(folder)).stdout.splitlines()]
    assert lines[0]["event"] == "progress"
    assert [line["error"]["code"] for line in lines[1:]] == ["import_failed"]


def test_error_before_the_first_event_has_a_hint(daemon, invoke, folder):
    daemon.fail(Route.IMPORTS, "name_taken", "`some-model` is another model's name", status=409)
    result = invoke("import", str(folder))
    assert result.exit_code == 1
    assert "--name NAME" in result.stderr


def test_unreadable_file_is_an_error_before_the_import(daemon, invoke, home, monkeypatch):
    file = home / "m.gguf"
    file.touch()

    def deny(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(file))

    monkeypatch.setattr(os, "open", deny)
    monkeypatch.setattr(sys, "platform", "darwin")
    result = invoke("import", str(file))
    assert result.exit_code == 1
    assert f"cannot open {file}: Operation not permitted" in result.stderr
    assert "Privacy & Security" in result.stderr
    assert daemon.bodies(Route.IMPORTS) == []


def test_missing_part_of_a_split_model_is_named(daemon, invoke, home):
    for number in (1, 3):
        (home / f"m-0000{number}-of-00003.gguf").touch()
    result = invoke("import", str(home / "m-00001-of-00003.gguf"))
    assert result.exit_code == 1
    assert "the part m-00002-of-00003.gguf of the model is missing" in result.stderr
    assert "all 3 parts" in result.stderr
    assert daemon.bodies(Route.IMPORTS) == []


def test_import_without_a_daemon_is_an_error(ctl, folder):
    assert ctl("import", str(folder)).returncode == 3


@pytest.mark.parametrize("cut", [True, False])
def test_incomplete_stream_is_an_error(daemon, invoke, folder, cut):
    daemon.import_events = [STEPS[0], daemon.CUT] if cut else [STEPS[0]]
    result = invoke("import", str(folder))
    assert result.exit_code == 1
    assert "invalid reply from osaurusd" in result.stderr


def test_ctrl_c_cancels_the_import(daemon, spawn, folder):
    daemon.import_events = [STEPS[0], daemon.HOLD]
    process = spawn("import", str(folder))
    assert process.stderr.readline() == b"checking\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "partial files were removed" in stderr.decode()
    assert daemon.client_disconnected.wait(60)


def test_ctrl_c_on_a_terminal_cancels_the_import(daemon, terminal, folder):
    daemon.import_events = [*STEPS, daemon.HOLD]
    screen = terminal("import", str(folder))
    screen.expect("2.0/2.0 MB")
    screen.type("\x03")
    shown, code = screen.end()
    assert code == 130
    assert "partial files were removed" in shown
    assert daemon.client_disconnected.wait(60)


def test_ctrl_c_prints_an_error_document_in_json(daemon, spawn, folder):
    daemon.import_events = [STEPS[0], daemon.HOLD]
    process = spawn("import", str(folder), "--json")
    assert json.loads(process.stdout.readline())["event"] == "progress"
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert process.returncode == 130
