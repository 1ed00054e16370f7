"""What a copy from the leader contains, and how it fails. The process runs in this one."""

import asyncio
import os

import pytest
from aiohttp import web

from osaurusd.config import Pulls
from osaurusd.errors import DiskFull, OsaurusError, PullFailed
from osaurusd.models import maintenance
from osaurusd.wire.admin import Availability, FileState
from tests.osaurusd.groups.conftest import LAYERS, divided_model, weights
from tests.osaurusd.models import disk

COPIED = {name: data for name, data in divided_model().items() if name != "README.md"}


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "osaurus.json"}


async def test_copy_is_used_again(leader_disk, leader, follower, faults):
    manifest = await leader_disk.manifest()
    folder = await follower.ensure(manifest, leader)
    served = len(faults.served)

    assert folder == await follower.ensure(manifest, leader)
    assert served == len(faults.served)


async def test_model_of_the_same_name_and_sizes_but_other_content_is_not_used(leader_disk, leader, follower):
    other = divided_model() | {LAYERS[1]: weights("model.layers.0.", seed=99)}
    disk.write(follower.models / "m", other)
    manifest = await leader_disk.manifest()
    folder = await follower.ensure(manifest, leader)

    assert f"m-{manifest.digest[:8]}" == folder.name
    assert COPIED == read(folder)
    assert other == read(follower.models / "m")
    assert any(stage == "verifying" for stage, _, _ in follower.reports)


async def test_rank_of_a_pipeline_copies_only_the_files_with_its_layers(leader_disk, leader, follower, faults):
    folder = await follower.ensure(await leader_disk.manifest(), leader, range(1))

    assert COPIED.keys() - {LAYERS[2]} == read(folder).keys()
    assert LAYERS[2] not in [path for path, _ in faults.served]
    record = await follower.catalog.find_any("m")
    assert (Availability.PARTIAL, "imported") == (record.state, record.source)
    assert 'some layers of "m", for groups of host "a"; it cannot be loaded on its own' == record.reason


async def test_files_of_other_layers_are_added_to_an_earlier_copy(leader_disk, leader, follower, faults):
    manifest = await leader_disk.manifest()
    folder = await follower.ensure(manifest, leader, range(1))
    faults.served.clear()

    assert folder == await follower.ensure(manifest, leader, range(1, 2))
    assert {LAYERS[2]} == {path for path, _ in faults.served}
    assert COPIED == read(folder)
    assert Availability.AVAILABLE is (await follower.catalog.find("m")).state


async def test_copy_is_verified_and_removed_like_an_import(leader_disk, leader, follower):
    folder = await follower.ensure(await leader_disk.manifest(), leader, range(1))
    record = await follower.catalog.find_any("m")

    *_, verification = [frame async for frame in maintenance.verify_model(record)]
    assert {FileState.INTACT} == {file.state for file in verification.files}
    await maintenance.remove_model(follower.catalog, record, dry_run=False)
    assert not folder.exists()


async def test_changed_model_is_copied_beside_the_old_copy(leader_disk, leader, follower):
    old = await follower.ensure(await leader_disk.manifest(), leader)
    changed = weights("model.layers.1.", seed=7)
    (leader_disk.models / "m" / LAYERS[2]).write_bytes(changed)
    os.utime(leader_disk.models / "m" / LAYERS[2], ns=(1, 1))
    new = await follower.ensure(await leader_disk.manifest(), leader)

    assert old != new
    assert changed == (new / LAYERS[2]).read_bytes()


async def test_file_that_differs_from_its_digest_is_not_installed(leader_disk, leader, follower):
    manifest = await leader_disk.manifest()
    path = leader_disk.models / "m" / LAYERS[1]
    status = path.stat()
    path.write_bytes(weights("model.layers.0.", seed=5))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PullFailed, match=f"checksum mismatch of {LAYERS[1]}"):
        await follower.ensure(manifest, leader)

    assert not (follower.models / "m").exists()


async def test_truncated_file_is_an_error_that_names_it(leader_disk, leader, follower):
    manifest = await leader_disk.manifest()
    with (leader_disk.models / "m" / LAYERS[1]).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(PullFailed, match=f"{LAYERS[1]}"):
        await follower.ensure(manifest, leader)

    assert not (follower.models / "m").exists()


async def test_file_that_the_leader_no_longer_has_is_an_error_with_its_reason(leader_disk, leader, follower):
    manifest = await leader_disk.manifest()
    (leader_disk.models / "m" / LAYERS[2]).unlink()
    (leader_disk.models / "m" / "model.safetensors.index.json").write_bytes(disk.index(*LAYERS[:2]))
    await leader_disk.catalog.refresh()
    with pytest.raises(PullFailed, match=r'host "a" responded with status \d+: '):
        await follower.ensure(manifest, leader)


async def test_cut_connections_are_resumed(leader_disk, leader, follower, faults):
    cut = set()

    async def answer(request, handler):
        path = request.match_info["path"]
        if path in cut:
            return await handler(request)
        cut.add(path)
        response = web.StreamResponse(status=206, headers={"Content-Range": f"bytes 0-{9}/{len(COPIED[path])}"})
        response.content_length = len(COPIED[path])
        await response.prepare(request)
        await response.write(COPIED[path][:10] if len(COPIED[path]) > 10 else b"")
        request.transport.abort()
        return response

    faults.answer = answer
    folder = await follower.ensure(await leader_disk.manifest(), leader)

    assert COPIED == read(folder)
    assert ("model-00001-of-00003.safetensors", f"bytes=10-{len(COPIED[LAYERS[0]]) - 1}") in faults.served


async def test_two_copies_of_a_model_at_once_share_one(leader_disk, leader, follower, faults):
    manifest = await leader_disk.manifest()
    folders = await asyncio.gather(*(follower.ensure(manifest, leader, range(n, n + 1)) for n in (0, 1)))

    assert folders[0] == folders[1]
    assert len(faults.served) == len(COPIED)


async def test_copy_that_does_not_fit_is_refused_before_it_begins(leader_disk, leader, follower, faults):
    follower.options = Pulls(disk_margin_bytes=10**15)
    with pytest.raises(DiskFull, match="not enough disk space in"):
        await follower.ensure(await leader_disk.manifest(), leader)

    assert [] == faults.served


async def test_unknown_model_is_not_served(leader_disk, leader, follower):
    manifest = await leader_disk.manifest()
    leader_disk.catalog.registry.add_alias("x", "m")
    (leader_disk.models / "m").rename(leader_disk.models / "n")
    await leader_disk.catalog.refresh()
    with pytest.raises(OsaurusError, match="responded with status 404"):
        await follower.ensure(manifest, leader)
