import json
import os
import shutil

import pytest

from osaurusd.models.worker.failure import StoreError
from osaurusd.models.worker.verify import verify
from osaurusd.rpc import messages
from osaurusd.wire.admin import FileState
from tests.fakes import hub

from . import process
from .conftest import FILES, NEW, REPO, client, download
from .test_cache import SHARE

SHARD = "model-00002-of-00002.safetensors"


def states(snapshot, record=None):
    return {file.name: file.state for file in verify(snapshot, record, lambda *_: None)}


def but(**changed):
    """All files intact but those, whose names are given in `changed` by their state."""
    return dict.fromkeys(FILES[NEW], FileState.INTACT) | {name: FileState(state) for state, name in changed.items()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_a_download_is_intact_and_its_progress_reaches_its_end(cache):
    frames, code = await process.run("verify", "--snapshot", cache.snapshot)

    total = sum(map(len, FILES[NEW].values()))
    *progress, last = frames
    assert code == 0
    assert last == messages.Hashed(
        files=[
            messages.HashedFile(name=name, bytes=len(content), state=FileState.INTACT)
            for name, content in sorted(FILES[NEW].items())
        ]
    )
    assert (progress[0].done, progress[0].total) == (0, total)
    assert (progress[-1].done, progress[-1].total) == (total, total)
    assert [frame.done for frame in progress] == sorted(frame.done for frame in progress)


@pytest.mark.parametrize("name", [SHARD, "config.json", "onnx/config.json"])
@pytest.mark.parametrize("with_tree", [True, False])
def test_a_flipped_bit_is_found(cache, name, with_tree):
    """In an LFS blob and in a git blob, by the hub's list and by the blob's own name."""
    if not with_tree:
        shutil.rmtree(cache.repo / "trees")
    flip(cache.blob(name))

    assert states(cache.snapshot) == but(changed=name)


def test_a_link_to_another_files_blob_is_found(cache):
    (cache.snapshot / SHARD).unlink()
    (cache.snapshot / SHARD).symlink_to(os.path.relpath(cache.blob("config.json"), cache.snapshot))

    assert states(cache.snapshot) == but(changed=SHARD)


def test_a_missing_shard_is_found_by_its_broken_link(cache):
    cache.blob(SHARD).unlink()

    files = {file.name: file for file in verify(cache.snapshot, None, lambda *_: None)}

    assert {name: file.state for name, file in files.items()} == but(missing=SHARD)
    assert files[SHARD].bytes == len(FILES[NEW][SHARD])


def test_what_is_absent_is_missing_only_if_a_model_needs_it(cache):
    for name in FILES[NEW]:
        (cache.snapshot / name).unlink()

    assert states(cache.snapshot) == dict.fromkeys(
        [*sorted(FILES[NEW].keys() - {"README.md", ".gitattributes", "onnx/config.json", "consolidated.safetensors"})],
        FileState.MISSING,
    )


def test_a_download_with_patterns_is_intact(tmp_path):
    with hub.serving(tmp_path / "root", {REPO: FILES}) as url:
        wanted = {"repo_id": REPO, "allow_patterns": ["*.json", "model*.safetensors", "*.jinja"]}
        download(url, tmp_path / "hub", tmp_path, wanted)

    found = states(tmp_path / "hub" / "models--org--model" / "snapshots" / NEW)

    assert found == {
        name: FileState.INTACT
        for name in FILES[NEW]
        if name not in ("README.md", ".gitattributes", "consolidated.safetensors")
    }


def test_a_file_that_someone_put_there_is_unrecorded(cache):
    (cache.snapshot / "notes.txt").write_text("mine")

    assert states(cache.snapshot) == but(unrecorded="notes.txt")


def test_files_in_place_of_links_are_known_by_the_hubs_list(cache):
    """As the client keeps them on file systems without links."""
    for name in (SHARD, "config.json"):
        (cache.snapshot / name).unlink()
        (cache.snapshot / name).write_bytes(FILES[NEW][name])
    flip(cache.snapshot / SHARD)

    assert states(cache.snapshot) == but(changed=SHARD)


def test_links_out_of_the_cache_are_not_followed(cache, tmp_path):
    (tmp_path / "secret").write_bytes(FILES[NEW]["config.json"])
    for name in ("config.json", "other"):
        (cache.snapshot / name).unlink(missing_ok=True)
        (cache.snapshot / name).symlink_to(tmp_path / "secret")
    shutil.rmtree(cache.repo / "trees")
    (cache.snapshot / SHARD).unlink()
    os.mkfifo(cache.snapshot / "pipe")

    found = {file.name: file for file in verify(cache.snapshot, None, lambda *_: None)}

    assert found["other"].state == found["config.json"].state == found["pipe"].state == FileState.UNRECORDED
    assert found["other"].bytes == 0


def test_a_recorded_file_that_became_a_link_elsewhere_has_changed(cache, tmp_path):
    (tmp_path / "same").write_bytes(FILES[NEW]["config.json"])
    (cache.snapshot / "config.json").unlink()
    (cache.snapshot / "config.json").symlink_to(tmp_path / "same")

    assert states(cache.snapshot) == but(changed="config.json")


@pytest.mark.parametrize("with_tree", [True, False])
def test_blobs_that_repos_share_are_followed(cache, tmp_path, with_tree):
    blob = cache.blob(SHARD)
    done = client(SHARE, str(cache.path), blob.name, cache.repo.name, cache.twin.name, home=tmp_path)
    assert done.returncode == 0, done.stderr
    if not with_tree:
        shutil.rmtree(cache.repo / "trees")
    assert states(cache.snapshot) == but()

    payload = blob.resolve()
    payload.chmod(0o600)
    flip(payload)

    assert states(cache.snapshot) == but(changed=SHARD)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format_version": 2, "files": {}}', b'{"files": {}}', b"\xff"]
)
def test_a_list_that_cannot_be_read_is_passed_over(cache, content):
    (cache.repo / "trees" / f"{NEW}.json").write_bytes(content)
    flip(cache.blob(SHARD))

    assert states(cache.snapshot) == but(changed=SHARD)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_cannot_be_read_is_named(cache):
    cache.blob(SHARD).chmod(0)

    frames, code = await process.run("verify", "--snapshot", cache.snapshot)

    assert code == 1
    assert frames[-1] == messages.StoreFailure(message=f"{SHARD}: Permission denied")


def test_a_file_that_the_disk_cannot_read_is_named(cache, monkeypatch):
    def broken(self, *_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", broken)

    with pytest.raises(StoreError, match=r"\.gitattributes: Input/output error"):
        states(cache.snapshot)


async def test_a_folder_that_is_not_there_is_named(tmp_path):
    frames, code = await process.run("verify", "--snapshot", tmp_path / "absent")

    assert frames == [messages.StoreFailure(message=f"{tmp_path / 'absent'}: there is no such folder")]
    assert code == 1


@pytest.fixture
def imported(tmp_path):
    """An imported model, its record telling of `model.safetensors` and `config.json`."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    files = {"model.safetensors": b"weights", "config.json": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "added.txt").write_text("mine")
    record = {"source": "x.gguf", "format": "gguf", "files": {name: hub.sha256(files[name]) for name in files}}
    (folder / "osaurus.json").write_text(json.dumps(record))
    return folder


def test_an_import_is_compared_with_its_record(imported):
    assert states(imported) == {
        "added.txt": FileState.UNRECORDED,
        "config.json": FileState.INTACT,
        "model.safetensors": FileState.INTACT,
    }

    flip(imported / "model.safetensors")
    (imported / "config.json").unlink()

    assert states(imported) == {
        "added.txt": FileState.UNRECORDED,
        "config.json": FileState.MISSING,
        "model.safetensors": FileState.CHANGED,
    }


def test_a_record_may_lie_elsewhere(imported, tmp_path):
    (imported / "osaurus.json").rename(tmp_path / "record.json")

    assert states(imported, tmp_path / "record.json")["config.json"] == FileState.INTACT
    assert states(imported)["config.json"] == FileState.UNRECORDED


@pytest.mark.parametrize("record", [None, {"source": "x.gguf", "format": "gguf", "sha256": "0" * 64}])
async def test_files_of_which_an_import_recorded_nothing_are_read_all_the_same(imported, record):
    (imported / "osaurus.json").unlink()
    if record:
        (imported / "osaurus.json").write_text(json.dumps(record))

    frames, code = await process.run("verify", "--snapshot", imported)

    assert code == 0
    assert {file.state for file in frames[-1].files} == {FileState.UNRECORDED}
    assert frames[-2].done == frames[-2].total == 13


@pytest.mark.parametrize("record", ["{", "[]", '{"files": []}', '{"files": {"config.json": 1}}'])
async def test_a_damaged_record_is_a_failure(imported, record):
    (imported / "osaurus.json").write_text(record)

    frames, code = await process.run("verify", "--snapshot", imported)

    assert code == 1
    assert frames[-1].message.startswith("osaurus.json: ")


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="other systems have no such names")
async def test_a_name_that_is_no_utf8_can_be_reported(imported):
    (imported / os.fsdecode(b"\xff.txt")).write_text("x")

    frames, code = await process.run("verify", "--snapshot", imported)

    assert code == 0
    assert "\ufffd.txt" in [file.name for file in frames[-1].files]
