"""A follower uses the files that it has, and copies others from the leader."""

import asyncio
import functools
import hashlib
import signal
import subprocess
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
from aiohttp import web

from osaurusd.errors import DiskFull, LoadFailed
from osaurusd.models import maintenance
from osaurusd.wire.admin import Availability
from tests.osaurusd.groups.conftest import LAYERS, HostDisk, divided_model, weights
from tests.osaurusd.models import disk

COPIED = {name: data for name, data in divided_model().items() if name != "README.md"}


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "osaurus.json"}


async def test_missing_model_is_copied_and_can_be_served(leader_disk, leader, follower):
    folder = await follower.ensure(await leader_disk.manifest(), leader)

    assert follower.models / "m" == folder
    assert COPIED == read(folder)
    assert Availability.AVAILABLE is (await follower.catalog.find("m")).state
    assert [] == follower.copying()
    assert ("fetching", sum(map(len, COPIED.values())), sum(map(len, COPIED.values()))) == follower.reports[-1]


@pytest.mark.parametrize("place", ["imported", "hub"])
async def test_existing_model_with_the_same_files_is_used_whatever_its_name(
    leader_disk, leader, follower, place, faults
):
    other = divided_model() | {"README.md": b"another text"}
    if place == "hub":
        expected = disk.write_hub(follower.hub, "org/other", other)
    else:
        expected = disk.write(follower.models / "other", other)
    folder = await follower.ensure(await leader_disk.manifest(), leader)

    assert expected == folder
    assert [] == faults.served


async def test_invalid_list_of_files_changes_nothing(leader_disk, leader, follower, faults):
    manifest = await leader_disk.manifest()
    evil = msgspec.structs.replace(manifest, digest="../../x")
    with pytest.raises(LoadFailed):
        await follower.ensure(evil, leader)

    assert [] == list(follower.models.iterdir())


LARGE_BYTES = 20_000_000


@functools.cache
def large_file():
    return weights("model.layers.0.", LARGE_BYTES)


@pytest.fixture
def large(leader_disk):
    """Make the model of the leader so large that its copy takes a while."""
    (leader_disk.models / "m" / LAYERS[1]).write_bytes(large_file())


class Gate:
    """Sends a part of the large file, then waits until the gate is opened."""

    def __init__(self):
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self.sent = 8_000_000

    async def __call__(self, request, handler):
        path = request.match_info["path"]
        if path != LAYERS[1] or self.opened.is_set():
            return await handler(request)
        begin, end = (int(text) for text in request.headers["range"].removeprefix("bytes=").split("-"))
        content = large_file()
        response = web.StreamResponse(status=206)
        response.headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        response.content_length = end - begin + 1
        await response.prepare(request)
        if begin == 0:
            await response.write(content[: self.sent])
            self.reached.set()
        await self.opened.wait()
        await response.write(content[begin + (self.sent if begin == 0 else 0) : end + 1])
        return response


def copy_process():
    """Return the child process that copies."""
    (process,) = [each for each in psutil.Process().children() if "osaurusd.groups.worker" in each.cmdline()]
    return process


async def wait_received(follower, count):
    """Wait until the copy has received so many bytes."""
    async with asyncio.timeout(60):
        while not any(stage == "fetching" and done >= count for stage, done, _ in follower.reports):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_killed_process_is_restarted_and_resumes(leader_disk, leader, follower, faults, large):
    gate = faults.answer = Gate()
    copying = asyncio.create_task(follower.ensure(await leader_disk.manifest(), leader))
    await gate.reached.wait()
    await wait_received(follower, 7_000_000)
    copy_process().send_signal(signal.SIGKILL)
    gate.opened.set()
    folder = await copying

    assert hashlib.sha256(large_file()).digest() == hashlib.sha256((folder / LAYERS[1]).read_bytes()).digest()
    begins = [int(range_[6:].split("-")[0]) for path, range_ in faults.served if path == LAYERS[1]]
    # The first part continues behind the data of the killed process.
    assert any(4_000_000 < begin <= 8_000_000 for begin in begins)


async def test_cancelled_copy_keeps_its_data_for_the_next_one(leader_disk, leader, follower, faults, large, tmp_path):
    gate = faults.answer = Gate()
    manifest = await leader_disk.manifest()
    # Other tests may have processes as well.
    before = psutil.Process().children()
    copying = asyncio.create_task(follower.ensure(manifest, leader))
    await gate.reached.wait()
    await wait_received(follower, 7_000_000)
    assert follower.copying() == follower.files.active_folders
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    gate.opened.set()

    assert [] == follower.files.active_folders
    (leftover,) = await maintenance.find_leftovers(follower.models, follower.hub)
    assert "unfinished copy from another host" == leftover.what
    assert before == psutil.Process().children()
    faults.served.clear()
    restarted = HostDisk.__new__(HostDisk)
    restarted.__dict__ |= follower.__dict__
    folder = await restarted.ensure(manifest, leader)
    assert LARGE_BYTES < (folder / LAYERS[1]).stat().st_size
    begins = [int(range_[6:].split("-")[0]) for path, range_ in faults.served if path == LAYERS[1]]
    assert any(4_000_000 < begin <= 8_000_000 for begin in begins)


@pytest.fixture
def small_disk(follower):
    """Put the follower's models on a file system of 36 MB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=36m", "none", follower.models], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system requires root")
    yield follower.models
    subprocess.run(["umount", "-l", follower.models], check=True)


async def test_full_disk_is_one_clear_error_and_the_copy_resumes(
    leader_disk, leader, follower, faults, large, small_disk
):
    gate = faults.answer = Gate()
    manifest = await leader_disk.manifest()
    copying = asyncio.create_task(follower.ensure(manifest, leader))
    await gate.reached.wait()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(22_000_000))
    gate.opened.set()
    with pytest.raises(DiskFull, match=r"^the disk with .* is full: .* load the model again to resume$"):
        await copying

    ballast.unlink()
    assert LARGE_BYTES < ((await follower.ensure(manifest, leader)) / LAYERS[1]).stat().st_size


@pytest.mark.parametrize(
    "path", ["README.md", "osaurus.json", "..%2F..%2Fstate%2Fdigests.json", "../m/config.json", "%2Fetc%2Fpasswd", "x"]
)
async def test_only_files_of_the_model_are_served(leader_disk, leader, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(leader.url).port)
    writer.write(f"GET /v0/models/m/files/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    response = (await reader.read()).decode()
    writer.close()

    assert "404" in response.split("\r\n")[0]
    assert "documentation" not in response
