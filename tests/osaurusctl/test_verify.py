"""`verify` shows how far it is, and which files are not what they were."""

import json
import signal

import pytest

from osaurusd.wire.admin import FileState, Route, VerifiedFile, VerifyDone, VerifyFailed, VerifyProgress
from osaurusd.wire.errors import ErrorBody

STEPS = [
    VerifyProgress(file="config.json", done=0, total=2_000_000),
    VerifyProgress(file="model.safetensors", done=2_000_000, total=2_000_000),
]


def _done(*states):
    names = ("config.json", "model.safetensors", "tokenizer.json")
    files = [VerifiedFile(name=name, bytes=1000, state=state) for name, state in zip(names, states, strict=False)]
    return VerifyDone(model="llama", files=files)


def test_an_intact_model_is_one_line(daemon, ctl):
    daemon.verify_events = [*STEPS, _done(FileState.INTACT, FileState.INTACT)]
    result = ctl("verify", "llama")
    assert result.returncode == 0
    assert result.stdout == "llama: 2 of 2 files intact\n"
    assert result.stderr == "hashing (2.0 MB)\n"
    assert daemon.bodies(Route.VERIFY) == [{"model": "llama"}]


def test_broken_files_are_listed_and_the_exit_code_is_1(daemon, invoke):
    daemon.verify_events = [*STEPS, _done(FileState.INTACT, FileState.CHANGED, FileState.MISSING)]
    result = invoke("verify", "llama")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "changed  1.0 kB  model.safetensors",
        "missing  1.0 kB  tokenizer.json",
        "llama: 1 of 3 files intact, 1 changed, 1 missing",
    ]
    assert "error" not in result.stderr


@pytest.mark.parametrize(("state", "code"), [("changed", 1), ("missing", 1), ("unrecorded", 0), ("intact", 0)])
def test_only_what_is_changed_or_missing_is_a_failure(daemon, invoke, state, code):
    daemon.verify_events = [_done(FileState(state))]
    assert invoke("verify", "llama").exit_code == code
    assert invoke("verify", "llama", "--json").exit_code == code


def test_what_was_never_recorded_is_said(daemon, invoke):
    daemon.verify_events = [_done(FileState.UNRECORDED)]
    assert invoke("verify", "llama").stdout.splitlines() == [
        "unrecorded  1.0 kB  config.json",
        "llama: 0 of 1 file intact, 1 unrecorded",
    ]


def test_json_is_a_line_an_event(daemon, invoke):
    daemon.verify_events = [*STEPS, _done(FileState.CHANGED)]
    result = invoke("verify", "llama", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "done"]
    assert events[-1]["files"] == [{"name": "config.json", "bytes": 1000, "state": "changed"}]


def test_a_terminal_shows_a_bar(daemon, terminal):
    daemon.verify_events = [*STEPS, _done(FileState.INTACT)]
    shown, code = terminal("verify", "llama").end()
    assert code == 0
    assert "model.safetensors" in shown
    assert "2.0/2.0 MB" in shown
    assert "llama: 1 of 1 file intact" in shown


def test_one_that_cannot_be_carried_out_is_an_error(daemon, invoke):
    refusal = ErrorBody(message="the disk cannot be read", type="server_error", code="internal_error")
    daemon.verify_events = [STEPS[0], VerifyFailed(error=refusal)]
    result = invoke("verify", "llama")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: the disk cannot be read\n" in result.stderr
    lines = [json.loads(line) for line in invoke("verify", "llama", "--json").stdout.splitlines()]
    assert [lines[0]["event"], lines[1]["error"]["code"]] == ["progress", "internal_error"]


def test_no_such_model_is_4(daemon, invoke):
    daemon.missing.add("llama")
    assert invoke("verify", "llama").exit_code == 4


@pytest.mark.parametrize("cut", [True, False])
def test_one_that_breaks_off_is_an_error(daemon, invoke, cut):
    daemon.verify_events = [STEPS[0], daemon.CUT] if cut else [STEPS[0]]
    result = invoke("verify", "llama")
    assert result.exit_code == 1
    assert "osaurusd's reply could not be used" in result.stderr


def test_interrupting_cancels_it(daemon, spawn):
    daemon.verify_events = [STEPS[0], daemon.HOLD]
    process = spawn("verify", "llama")
    assert process.stderr.readline() == b"hashing (2.0 MB)\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == b"error: the verification is cancelled\n"
    assert daemon.client_gone.wait(30)
