"""Copies in this process: starting Python takes longer than a copy."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from osaurusd.downloads.messages import Failure
from osaurusd.downloads.worker.errors import PullError
from osaurusd.groups import files
from osaurusd.groups.messages import CopyTask
from osaurusd.groups.worker.copying import copy
from osaurusd.rpc import job


def read_task(path):
    return msgspec.json.decode(Path(path).read_bytes(), type=CopyTask)


async def run_copy(_command, arguments, _decoder):
    """Yield the frames of the process that copies."""
    frames = asyncio.Queue()
    task = read_task(arguments[0])

    async def work():
        try:
            frames.put_nowait(await copy(task, frames.put_nowait))
        except PullError as error:
            frames.put_nowait(Failure(code=error.code, message=error.message))

    copying = asyncio.create_task(work())
    try:
        while True:
            yield await frames.get()
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    stand_in = SimpleNamespace(run=run_copy, JobDied=job.JobDied, run_until_done=job.run_until_done)
    monkeypatch.setattr(files, "job", stand_in)
