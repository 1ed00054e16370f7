"""Manifests list the files of a model with their digests, which are computed once."""

import asyncio
import hashlib
import json
import os

import msgspec
import pytest

from osaurusd.errors import LoadFailed, OsaurusError
from osaurusd.groups import manifest as manifests
from osaurusd.groups.manifest import Manifests, check, is_part_of_model, select_files
from osaurusd.models import maintenance
from tests.osaurusd.groups.conftest import LAYERS, divided_model
from tests.osaurusd.models import disk


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were hashed."""
    original, names = maintenance.hash_files, []

    async def record(folder, files, progress):
        names.extend(files)
        return await original(folder, files, progress)

    monkeypatch.setattr(maintenance, "hash_files", record)
    return names


async def test_manifest_has_the_digests_and_layers_of_all_files_but_documentation(leader_disk):
    manifest = await leader_disk.manifest()

    content = {name: data for name, data in divided_model().items() if name != "README.md"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert digests == {file.path: file.sha256 for file in manifest.files}
    assert {name: len(data) for name, data in content.items()} == {file.path: file.size for file in manifest.files}
    layers = {file.path: file.layers for file in manifest.files if file.path in LAYERS}
    assert {LAYERS[0]: None, LAYERS[1]: (0,), LAYERS[2]: (1,)} == layers
    check(manifest)


async def test_digests_are_computed_once_and_survive_a_restart(leader_disk, tmp_path, hashed):
    first = await leader_disk.manifest()
    assert 6 == len(hashed)

    again = Manifests(tmp_path / "a" / "state" / "digests.json")
    assert first == await again.build(await leader_disk.catalog.find("m"))
    assert 6 == len(hashed)


async def test_known_manifest_does_not_wait_for_that_of_another_model(leader_disk, monkeypatch):
    known = await leader_disk.manifest()
    disk.write(leader_disk.models / "other", divided_model())
    hashing, gate = asyncio.Event(), asyncio.Event()
    original = maintenance.hash_files

    async def hash_files(*arguments):
        hashing.set()
        await gate.wait()
        return await original(*arguments)

    monkeypatch.setattr(maintenance, "hash_files", hash_files)
    await leader_disk.catalog.refresh()
    other = asyncio.create_task(leader_disk.manifests.build(await leader_disk.catalog.find("other")))
    await hashing.wait()
    async with asyncio.timeout(60):
        assert known == await leader_disk.manifest()
    gate.set()
    await other


async def test_changed_file_is_hashed_again(leader_disk, hashed):
    first = await leader_disk.manifest()
    hashed.clear()
    path = leader_disk.models / "m" / LAYERS[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    second = await leader_disk.manifest()

    assert [LAYERS[1]] == hashed
    assert first.digest != second.digest


async def test_digests_of_large_files_in_the_hub_cache_are_those_of_their_blobs(leader_disk, hashed):
    disk.write_hub(leader_disk.hub, "org/h", divided_model())
    manifest = await leader_disk.manifest("h")

    assert [] == hashed
    assert (await leader_disk.manifest("m")).files == manifest.files


async def test_recorded_digests_of_an_import_count_for_weights_only(leader_disk, hashed):
    record = {"files": {LAYERS[1]: "1" * 64, "config.json": "2" * 64}}
    (leader_disk.models / "m" / "osaurus.json").write_text(json.dumps(record))
    manifest = await leader_disk.manifest()

    digests = {file.path: file.sha256 for file in manifest.files}
    assert ("1" * 64, True) == (digests[LAYERS[1]], digests["config.json"] != "2" * 64)
    assert "osaurus.json" not in digests
    assert LAYERS[1] not in hashed


async def test_damaged_or_unwritable_state_only_costs_time(leader_disk, tmp_path):
    state = tmp_path / "a" / "state" / "digests.json"
    state.parent.mkdir(exist_ok=True)
    state.write_text("{")
    first = await leader_disk.manifest()
    assert first.digest == json.loads(json.dumps(first.digest))
    assert state.exists()


async def test_model_without_config_or_with_a_missing_file_has_no_manifest(leader_disk):
    record = await leader_disk.catalog.find("m")
    (leader_disk.models / "m" / "tokenizer.json").unlink()
    with pytest.raises(LoadFailed, match=r"tokenizer\.json: No such file"):
        await leader_disk.manifests.build(record)
    (leader_disk.models / "m" / "config.json").unlink()
    with pytest.raises(OsaurusError, match="cannot be distributed"):
        await leader_disk.manifest()


@pytest.mark.parametrize(
    ("only", "expected"), [(None, LAYERS), (range(1), LAYERS[:2]), (range(1, 2), (LAYERS[0], LAYERS[2]))]
)
async def test_rank_needs_the_files_with_its_layers_and_those_that_every_rank_needs(leader_disk, only, expected):
    selected = [file.path for file in select_files(await leader_disk.manifest(), only)]

    assert list(expected) == [path for path in selected if path in LAYERS]
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= set(selected)


@pytest.mark.parametrize(
    "path",
    [
        *("../config.json", "/etc/passwd.json", "a/config.json", ".hidden.json", "modeling.py", "pytorch_model.bin"),
        *("osaurus.json", "..", "", "README.md", "a\\..\\b.json/x", "additional_chat_templates/../x.jinja"),
    ],
)
def test_other_paths_are_no_part_of_a_model(path):
    assert not is_part_of_model(path)


@pytest.mark.parametrize(
    "path", ["config.json", "model.safetensors", LAYERS[0], "chat_template.jinja", "additional_chat_templates/a.jinja"]
)
def test_path_is_part_of_a_model(path):
    assert is_part_of_model(path)


async def test_manifest_of_another_host_is_checked(leader_disk):
    manifest = await leader_disk.manifest()
    first, *rest = manifest.files
    broken = [
        [msgspec.structs.replace(first, path="../../evil.json"), *rest],
        [msgspec.structs.replace(first, sha256="../x"), *rest],
        [msgspec.structs.replace(first, size=-1), *rest],
        [first, first, *rest],
        rest,
    ]
    for files in broken:
        changed = msgspec.structs.replace(manifest, files=tuple(files), digest=manifests.digest_of(files))
        with pytest.raises(LoadFailed, match="is invalid"):
            check(changed)
    with pytest.raises(LoadFailed, match="is invalid"):
        check(msgspec.structs.replace(manifest, digest="0" * 64))
