"""The environment and the messages of the process that talks to the hub."""

import sys

import pytest

from osaurusd.downloads import hub, messages
from osaurusd.errors import PullFailed
from osaurusd.rpc import job

SCRIPT = """
import os, socket, sys
from osaurusd.downloads import messages
from osaurusd.rpc import framing
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage
with socket.socket(fileno=int(sys.argv[2])) as peer:
    text = f"{os.environ.get('HF_TOKEN')} at https://cdn.example/a?Signature=PLANTED"
    peer.sendall(framing.encode([messages.Progress(stage=PullStage.RESOLVING, note=text)]))
    peer.sendall(framing.encode([messages.Failure(code=ErrorCode.PULL_FAILED, message=text)]))
"""


@pytest.fixture
def command(tmp_path):
    (script := tmp_path / "script.py").write_text(SCRIPT)
    return (sys.executable, str(script))


async def test_tokens_and_signatures_are_redacted_in_notes_and_errors(command, monkeypatch):
    monkeypatch.setattr(hub, "COMMAND", command)
    frames = hub.run([], "hf_PLANTED0123456789")

    assert "hf_[redacted] at https://cdn.example/a?[redacted]" == (await anext(frames)).note
    with pytest.raises(PullFailed, match=r"^hf_") as failure:
        await anext(frames)
    assert "hf_[redacted] at https://cdn.example/a?[redacted]" == failure.value.message


async def test_other_child_processes_get_no_token(command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED0123456789")
    frames = job.run(command, [], messages.DECODER)

    assert (await anext(frames)).note.startswith("None at ")
    await frames.aclose()
