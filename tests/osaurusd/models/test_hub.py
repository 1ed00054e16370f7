"""What the process that asks the hub says, before anybody else hears it; and what it and its like are told."""

import sys

import pytest

from osaurusd.downloads import hub
from osaurusd.errors import PullFailed
from osaurusd.rpc import child, messages

SCRIPT = """
import os, socket, sys
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage
with socket.socket(fileno=int(sys.argv[2])) as peer:
    told = f"{os.environ.get('HF_TOKEN')} at https://cdn.example/a?Signature=PLANTED"
    peer.sendall(framing.encode([messages.Pulling(stage=PullStage.RESOLVING, note=told)]))
    peer.sendall(framing.encode([messages.HubFailure(code=ErrorCode.PULL_FAILED, message=told)]))
"""


@pytest.fixture
def command(tmp_path):
    (script := tmp_path / "script.py").write_text(SCRIPT)
    return (sys.executable, str(script))


async def test_neither_its_token_nor_a_signature_gets_into_notes_and_errors(command, monkeypatch):
    monkeypatch.setattr(hub, "HUB_COMMAND", command)
    frames = hub.run([], "hf_PLANTED0123456789")

    assert "hf_[redacted] at https://cdn.example/a?[redacted]" == (await anext(frames)).note
    with pytest.raises(PullFailed, match=r"^hf_") as failure:
        await anext(frames)
    assert "hf_[redacted] at https://cdn.example/a?[redacted]" == failure.value.message


async def test_a_process_that_asks_no_hub_is_given_no_token(command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED0123456789")
    frames = child.frames(command, [], messages.FROM_HUB)

    assert (await anext(frames)).note.startswith("None at ")
    await frames.aclose()
