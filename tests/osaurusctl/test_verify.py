"""`verify`: progress, damaged files and exit codes."""

import json
import signal

import pytest

from osaurusd.wire.admin import FileState, Route, VerifiedFile, VerifyDone, VerifyFailed, VerifyProgress
from osaurusd.wire.errors import ErrorBody

STEPS = [
    VerifyProgress(file="config.json", done=0, total=2_000_000),
    VerifyProgress(file="model.safetensors", done=2_000_000, total=2_000_000),
]


def build_result(*states):
    names = ("config.json", "model.safetensors", "tokenizer.json")
    files = [VerifiedFile(name=name, bytes=1000, state=state) for name, state in zip(names, states, strict=False)]
    return VerifyDone(model="llama", files=files)


def test_intact_model_prints_one_line(daemon, ctl):
    daemon.verify_events = [*STEPS, build_result(FileState.INTACT, FileState.INTACT)]
    result = ctl("verify", "llama")
    assert result.returncode == 0
    assert result.stdout == "llama: 2 of 2 files intact\n"
    assert result.stderr == "hashing (2.0 MB)\n"
    assert daemon.bodies(Route.VERIFY) == [{"model": "llama"}]


def test_damaged_files_are_listed_with_exit_code_1(daemon, invoke):
    daemon.verify_events = [*STEPS, build_result(FileState.INTACT, FileState.CHANGED, FileState.MISSING)]
    result = invoke("verify", "llama")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "changed  1.0 kB  model.safetensors",
        "missing  1.0 kB  tokenizer.json",
        "llama: 1 of 3 files intact, 1 changed, 1 missing",
    ]
    assert "error" not in result.stderr


@pytest.mark.parametrize(("state", "code"), [("changed", 1), ("missing", 1), ("unrecorded", 0), ("intact", 0)])
def test_only_changed_or_missing_files_are_a_failure(daemon, invoke, state, code):
    daemon.verify_events = [build_result(FileState(state))]
    assert invoke("verify", "llama").exit_code == code
    assert invoke("verify", "llama", "--json").exit_code == code


def test_files_without_a_recorded_checksum_are_listed(daemon, invoke):
    daemon.verify_events = [build_result(FileState.UNRECORDED)]
    assert invoke("verify", "llama").stdout.splitlines() == [
        "unrecorded  1.0 kB  config.json",
        "llama: 0 of 1 file intact, 1 unrecorded",
    ]


def test_json_output_has_one_line_per_event(daemon, invoke):
    daemon.verify_events = [*STEPS, build_result(FileState.CHANGED)]
    result = invoke("verify", "llama", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "done"]
    assert events[-1]["files"] == [{"name": "config.json", "bytes": 1000, "state": "changed"}]


def test_terminal_shows_a_progress_bar(daemon, terminal):
    daemon.verify_events = [*STEPS, build_result(FileState.INTACT)]
    shown, code = terminal("verify", "llama").end()
    assert code == 0
    assert "model.safetensors" in shown
    assert "2.0/2.0 MB" in shown
    assert "llama: 1 of 1 file intact" in shown


def test_verification_that_fails_is_an_error(daemon, invoke):
    failure = ErrorBody(message="the disk cannot be read", type="server_error", code="internal_error")
    daemon.verify_events = [STEPS[0], VerifyFailed(error=failure)]
    result = invoke("verify", "llama")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: the disk cannot be read\n" in result.stderr
    lines = [json.loads(line) for line in invoke("verify", "llama", "--json").stdout.splitlines()]
    assert [lines[0]["event"], lines[1]["error"]["code"]] == ["progress", "internal_error"]


def test_unknown_model_exits_with_4(daemon, invoke):
    daemon.missing.add("llama")
    assert invoke("verify", "llama").exit_code == 4


@pytest.mark.parametrize("cut", [True, False])
def test_incomplete_stream_is_an_error(daemon, invoke, cut):
    daemon.verify_events = [STEPS[0], daemon.CUT] if cut else [STEPS[0]]
    result = invoke("verify", "llama")
    assert result.exit_code == 1
    assert "invalid reply from osaurusd" in result.stderr


def test_ctrl_c_cancels_the_verification(daemon, spawn):
    daemon.verify_events = [STEPS[0], daemon.HOLD]
    process = spawn("verify", "llama")
    assert process.stderr.readline() == b"hashing (2.0 MB)\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == b"error: verification cancelled\n"
    assert daemon.client_disconnected.wait(60)
