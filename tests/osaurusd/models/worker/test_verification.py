import json
import os
import shutil

import pytest

from osaurusd.models import messages
from osaurusd.models.worker.files import StoreError
from osaurusd.models.worker.verification import verify
from osaurusd.wire.admin import FileState, VerifiedFile
from tests.fakes import hub

from . import process
from .conftest import FILES, NEW, REPO, download, share_blob

SHARD = "model-00002-of-00002.safetensors"

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root ignores permissions")


def verify_states(snapshot, record=None):
    return {file.name: file.state for file in verify(snapshot, record, lambda *_: None)}


def expected_states(**exceptions):
    """All files intact, except for the given ones: the name of a file by its state."""
    states = dict.fromkeys(FILES[NEW], FileState.INTACT)
    return states | {name: FileState(state) for state, name in exceptions.items()}


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_download_is_intact_and_progress_is_complete(cache):
    frames, code = await process.run("verify", "--snapshot", cache.snapshot)

    total = sum(map(len, FILES[NEW].values()))
    *progress, result = frames
    assert code == 0
    assert result == messages.Verification(
        files=[
            VerifiedFile(name=name, bytes=len(content), state=FileState.INTACT)
            for name, content in sorted(FILES[NEW].items())
        ]
    )
    assert (progress[0].done, progress[0].total) == (0, total)
    assert (progress[-1].done, progress[-1].total) == (total, total)
    assert [frame.done for frame in progress] == sorted(frame.done for frame in progress)


@pytest.mark.parametrize("name", [SHARD, "config.json", "onnx/config.json"])
@pytest.mark.parametrize("with_tree", [True, False])
def test_flipped_bit_is_detected(cache, name, with_tree):
    """In LFS blobs and git blobs, with the digest from the hub's file list or from the blob's name."""
    if not with_tree:
        shutil.rmtree(cache.repo / "trees")
    flip_bit(cache.blob(name))

    assert verify_states(cache.snapshot) == expected_states(changed=name)


def test_link_to_the_wrong_blob_is_detected(cache):
    (cache.snapshot / SHARD).unlink()
    (cache.snapshot / SHARD).symlink_to(os.path.relpath(cache.blob("config.json"), cache.snapshot))

    assert verify_states(cache.snapshot) == expected_states(changed=SHARD)


def test_broken_link_is_a_missing_file(cache):
    cache.blob(SHARD).unlink()
    files = {file.name: file for file in verify(cache.snapshot, None, lambda *_: None)}

    assert {name: file.state for name, file in files.items()} == expected_states(missing=SHARD)
    assert files[SHARD].bytes == len(FILES[NEW][SHARD])


def test_absent_files_are_only_missing_if_they_are_required(cache):
    for name in FILES[NEW]:
        (cache.snapshot / name).unlink()

    optional = {"README.md", ".gitattributes", "onnx/config.json", "consolidated.safetensors"}
    assert verify_states(cache.snapshot) == dict.fromkeys(FILES[NEW].keys() - optional, FileState.MISSING)


def test_download_with_patterns_is_intact(tmp_path):
    with hub.serving(tmp_path / "root", {REPO: FILES}) as url:
        request = {"repo_id": REPO, "allow_patterns": ["*.json", "model*.safetensors", "*.jinja"]}
        download(url, tmp_path / "hub", tmp_path, request)

    excluded = {"README.md", ".gitattributes", "consolidated.safetensors"}
    assert verify_states(tmp_path / "hub" / "models--org--model" / "snapshots" / NEW) == dict.fromkeys(
        FILES[NEW].keys() - excluded, FileState.INTACT
    )


def test_added_file_is_unrecorded(cache):
    (cache.snapshot / "notes.txt").write_text("mine")

    assert verify_states(cache.snapshot) == expected_states(unrecorded="notes.txt")


def test_files_instead_of_links_are_compared_with_the_file_list(cache):
    """huggingface_hub stores such files on file systems without links."""
    for name in (SHARD, "config.json"):
        (cache.snapshot / name).unlink()
        (cache.snapshot / name).write_bytes(FILES[NEW][name])
    flip_bit(cache.snapshot / SHARD)

    assert verify_states(cache.snapshot) == expected_states(changed=SHARD)


def test_links_out_of_the_cache_are_not_followed(cache, tmp_path):
    (tmp_path / "secret").write_bytes(FILES[NEW]["config.json"])
    for name in ("config.json", "other"):
        (cache.snapshot / name).unlink(missing_ok=True)
        (cache.snapshot / name).symlink_to(tmp_path / "secret")
    shutil.rmtree(cache.repo / "trees")
    (cache.snapshot / SHARD).unlink()
    os.mkfifo(cache.snapshot / "pipe")

    files = {file.name: file for file in verify(cache.snapshot, None, lambda *_: None)}

    assert {files[name].state for name in ("other", "config.json", "pipe")} == {FileState.UNRECORDED}
    assert files["other"].bytes == 0


def test_recorded_file_that_became_a_link_out_of_the_cache_is_changed(cache, tmp_path):
    (tmp_path / "same").write_bytes(FILES[NEW]["config.json"])
    (cache.snapshot / "config.json").unlink()
    (cache.snapshot / "config.json").symlink_to(tmp_path / "same")

    assert verify_states(cache.snapshot) == expected_states(changed="config.json")


@pytest.mark.parametrize("with_tree", [True, False])
def test_blobs_that_repositories_share_are_verified(cache, tmp_path, with_tree):
    share_blob(cache, cache.blob(SHARD), tmp_path)
    if not with_tree:
        shutil.rmtree(cache.repo / "trees")
    assert verify_states(cache.snapshot) == expected_states()

    shared = cache.blob(SHARD).resolve()
    shared.chmod(0o600)
    flip_bit(shared)
    assert verify_states(cache.snapshot) == expected_states(changed=SHARD)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format_version": 2, "files": {}}', b'{"files": {}}', b"\xff"]
)
def test_invalid_file_list_is_ignored(cache, content):
    (cache.repo / "trees" / f"{NEW}.json").write_bytes(content)
    flip_bit(cache.blob(SHARD))

    assert verify_states(cache.snapshot) == expected_states(changed=SHARD)


@needs_permissions
async def test_error_names_the_file_that_cannot_be_opened(cache):
    cache.blob(SHARD).chmod(0)
    frames, code = await process.run("verify", "--snapshot", cache.snapshot)

    assert code == 1
    assert frames[-1] == messages.Failure(message=f"cannot read {SHARD}: Permission denied")


def test_error_names_the_file_that_cannot_be_read(cache, monkeypatch):
    def fail(self, *_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", fail)

    with pytest.raises(StoreError, match=r"cannot read \.gitattributes: Input/output error"):
        verify_states(cache.snapshot)


async def test_missing_folder_is_an_error(tmp_path):
    frames, code = await process.run("verify", "--snapshot", tmp_path / "absent")

    assert frames == [messages.Failure(message=f"{tmp_path / 'absent'} does not exist")]
    assert code == 1


@pytest.fixture
def imported(tmp_path):
    """An imported model whose record has the digests of `model.safetensors` and `config.json`."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    files = {"model.safetensors": b"weights", "config.json": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "added.txt").write_text("mine")
    record = {"source": "x.gguf", "format": "gguf", "files": {name: hub.sha256(files[name]) for name in files}}
    (folder / "osaurus.json").write_text(json.dumps(record))
    return folder


def test_import_is_compared_with_its_record(imported):
    assert verify_states(imported) == {
        "added.txt": FileState.UNRECORDED,
        "config.json": FileState.INTACT,
        "model.safetensors": FileState.INTACT,
    }

    flip_bit(imported / "model.safetensors")
    (imported / "config.json").unlink()

    assert verify_states(imported) == {
        "added.txt": FileState.UNRECORDED,
        "config.json": FileState.MISSING,
        "model.safetensors": FileState.CHANGED,
    }


def test_record_may_be_in_another_folder(imported, tmp_path):
    (imported / "osaurus.json").rename(tmp_path / "record.json")

    assert verify_states(imported, tmp_path / "record.json")["config.json"] == FileState.INTACT
    assert verify_states(imported)["config.json"] == FileState.UNRECORDED


@pytest.mark.parametrize("record", [None, {"source": "x.gguf", "format": "gguf", "sha256": "0" * 64}])
async def test_files_without_a_recorded_digest_are_read_as_well(imported, record):
    (imported / "osaurus.json").unlink()
    if record:
        (imported / "osaurus.json").write_text(json.dumps(record))
    frames, code = await process.run("verify", "--snapshot", imported)

    assert code == 0
    assert {file.state for file in frames[-1].files} == {FileState.UNRECORDED}
    assert frames[-2].done == frames[-2].total == 13


@pytest.mark.parametrize("record", ["{", "[]", '{"files": []}', '{"files": {"config.json": 1}}'])
async def test_invalid_record_is_an_error(imported, record):
    (imported / "osaurus.json").write_text(record)
    frames, code = await process.run("verify", "--snapshot", imported)

    assert code == 1
    assert frames[-1].message.startswith("osaurus.json")


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="other systems reject such names")
async def test_file_name_that_is_not_utf8_can_be_reported(imported):
    (imported / os.fsdecode(b"\xff.txt")).write_text("x")
    frames, code = await process.run("verify", "--snapshot", imported)

    assert code == 0
    assert "\ufffd.txt" in [file.name for file in frames[-1].files]
