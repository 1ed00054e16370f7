"""Receiving single files: what happens to the files of this process."""

import asyncio
import hashlib
import os
import threading

import pytest

from osaurusd.downloads.worker.receiver import Receiver
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.downloads.worker.staging import Staging
from osaurusd.downloads.worker.transfer import ProgressReporter

CONTENT = b"{}"
FILE = HubFile("config.json", len(CONTENT), "0" * 40, hashlib.sha256(CONTENT).hexdigest())


class FakeTransfer:
    async def receive(self, file, partial):
        for part in partial.parts:
            partial.write(part, CONTENT)


@pytest.fixture
def receiver(tmp_path):
    return Receiver(Staging(tmp_path), FakeTransfer(), ProgressReporter(lambda frame: None))


async def test_cancellation_while_a_file_is_finished_closes_no_descriptor_twice(receiver, tmp_path, monkeypatch):
    """The second time, the descriptor may be that of another file or connection."""
    syncing, resume = threading.Event(), threading.Event()

    def fsync(descriptor):
        syncing.set()
        assert resume.wait(60)

    monkeypatch.setattr(os, "fsync", fsync)
    obtaining = asyncio.create_task(receiver.obtain(FILE))
    await asyncio.to_thread(syncing.wait, 60)
    obtaining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await obtaining
    others = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    resume.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    for descriptor in others:
        os.close(descriptor)


async def test_file_that_cannot_be_moved_is_closed_once(receiver, tmp_path, monkeypatch):
    (tmp_path / f"{FILE.etag}.verified").mkdir()
    closed, close = [], os.close
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or close(descriptor))
    with pytest.raises(IsADirectoryError):
        await receiver.obtain(FILE)
    assert len(closed) == len(set(closed)) == 2
