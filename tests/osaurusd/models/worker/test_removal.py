import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import scan_cache_dir

from osaurusd.models import messages
from osaurusd.models.worker import removal
from osaurusd.models.worker.files import StoreError

from . import interrupt, process
from .conftest import FILES, NEW, REPO, TWIN, Cache, run_python, share_blob

TOTAL_BYTES = sum(len(content) for content in {content for files in FILES.values() for content in files.values()})
"""The bytes of both revisions; shared files count once."""

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root ignores permissions")


@pytest.fixture
def imported(tmp_path):
    """An imported model of 30 bytes."""
    path = tmp_path / "models" / "tiny"
    (path / "deeper").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 20)
    (path / "deeper" / "config.json").write_bytes(b"y" * 10)
    return path


async def test_folder_is_removed_with_its_content(imported):
    frames, code = await process.run("remove-folder", "--path", imported)

    assert (frames, code) == ([messages.Removal(freed_bytes=30)], 0)
    assert list(imported.parent.iterdir()) == []


def test_folder_is_renamed_before_its_files_are_removed(imported, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)
    removal.remove_folder(imported)

    (renamed,) = imported.parent.iterdir()
    assert renamed.name.startswith(".removing-")
    assert removal.size_of(renamed) == 30


async def test_only_the_link_to_a_folder_is_removed(imported):
    link = imported.parent / "link"
    link.symlink_to(imported)
    frames, code = await process.run("remove-folder", "--path", link)

    assert (frames, code) == ([messages.Removal(freed_bytes=0)], 0)
    assert not link.is_symlink()
    assert removal.size_of(imported) == 30


def test_links_in_a_folder_are_not_followed(imported, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"z")
    (imported / "folder").symlink_to(tmp_path / "elsewhere")
    (imported / "file").symlink_to(tmp_path / "elsewhere" / "file")

    assert removal.remove_folder(imported) == 30
    assert (tmp_path / "elsewhere" / "file").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent/tiny", "does not exist"),
        ("models/absent", "does not exist"),
        ("models/tiny/model.safetensors", "is not a folder"),
    ],
)
async def test_path_that_is_not_a_folder_is_an_error(imported, tmp_path, path, reason):
    frames, code = await process.run("remove-folder", "--path", tmp_path / path)

    assert code == 1
    assert frames == [messages.Failure(message=f"{tmp_path / path} {reason}")]
    assert removal.size_of(imported) == 30


@needs_permissions
async def test_error_names_the_folder_that_cannot_be_removed(imported):
    imported.parent.chmod(0o500)
    frames, code = await process.run("remove-folder", "--path", imported)
    imported.parent.chmod(0o700)

    assert code == 1
    assert frames == [messages.Failure(message=f"{imported}: Permission denied")]
    assert removal.size_of(imported) == 30


def read_tree(path):
    """Return all files, links and folders below a path, with content or target."""
    return {
        str(entry.relative_to(path)): str(entry.readlink())
        if entry.is_symlink()
        else (entry.read_bytes() if entry.is_file() else None)
        for entry in path.rglob("*")
    }


def has_snapshot(cache):
    """Whether another program could find a revision of the model."""
    return any((cache.repo / "snapshots").glob("*")) if cache.repo.exists() else False


def is_complete(cache):
    return all(
        (cache.repo / "snapshots" / commit / name).read_bytes() == content
        for commit, files in FILES.items()
        for name, content in files.items()
    )


def assert_removed(cache):
    """Assert that nothing of the model is left, and that huggingface_hub finds no damage."""
    assert not cache.repo.exists()
    assert not cache.locks.exists()
    info = scan_cache_dir(cache.path)
    assert [repo.repo_id for repo in info.repos] == [TWIN]
    assert info.warnings == []
    assert not info.incomplete_files


async def test_plan_states_what_the_removal_frees(cache):
    before = read_tree(cache.path)

    planned = await process.run("plan", "--cache", cache.path, "--repo", REPO)
    after_plan = read_tree(cache.path)
    removed = await process.run("remove", "--cache", cache.path, "--repo", REPO)

    assert planned == removed == ([messages.Removal(freed_bytes=TOTAL_BYTES)], 0)
    assert after_plan == before
    assert_removed(cache)


@pytest.mark.parametrize(("removed", "kept"), [(REPO, "twin"), (TWIN, "repo")])
def test_repository_with_the_same_commit_is_kept(cache, removed, kept):
    """huggingface_hub's delete_revisions identifies repositories only by commit."""
    folder = getattr(cache, kept)
    before = read_tree(folder), read_tree(cache.path / ".locks" / folder.name)
    removal.remove_repo(cache.path, removed)

    assert (read_tree(folder), read_tree(cache.path / ".locks" / folder.name)) == before


def test_partial_downloads_and_unused_blobs_are_counted_and_removed(cache):
    (cache.blobs / f"{'c' * 64}.0123abcd.incomplete").write_bytes(b"x" * 1000)
    (cache.blobs / ("d" * 64)).write_bytes(b"y" * 100)

    assert removal.plan_repo_removal(cache.path, REPO) == TOTAL_BYTES + 1100
    assert removal.remove_repo(cache.path, REPO) == TOTAL_BYTES + 1100
    assert_removed(cache)


def test_repository_with_only_a_partial_download_can_be_removed(cache):
    removal.remove_repo(cache.path, REPO)
    cache.blobs.mkdir(parents=True)
    (cache.blobs / f"{'c' * 64}.incomplete").write_bytes(b"x" * 1000)

    assert removal.plan_repo_removal(cache.path, REPO) == 1000
    assert removal.remove_repo(cache.path, REPO) == 1000
    assert_removed(cache)


def test_repository_without_revisions_can_be_removed(cache):
    removal.remove_repo(cache.path, REPO)
    (cache.repo / "snapshots").mkdir(parents=True)

    assert removal.remove_repo(cache.path, REPO) == 0
    assert_removed(cache)


def test_damaged_repository_can_be_removed(cache):
    blob = cache.blob("config.json")
    size = blob.stat().st_size
    blob.unlink()
    assert scan_cache_dir(cache.path).warnings

    assert removal.plan_repo_removal(cache.path, REPO) >= TOTAL_BYTES - size
    removal.remove_repo(cache.path, REPO)
    assert_removed(cache)


def test_blob_that_another_repository_shares_is_kept_and_not_counted(cache, tmp_path):
    shard = "model-00001-of-00002.safetensors"
    share_blob(cache, cache.blob(shard), tmp_path)
    shared = cache.blob(shard).resolve()
    size = shared.stat().st_size

    planned = removal.plan_repo_removal(cache.path, REPO)
    assert planned == removal.remove_repo(cache.path, REPO) == TOTAL_BYTES - size
    assert (cache.twin / "snapshots" / NEW / shard).read_bytes() == FILES[NEW][shard]
    assert_removed(cache)
    # The last repository that uses the blob removes it.
    assert removal.remove_repo(cache.path, TWIN) == sum(map(len, FILES[NEW].values()))
    assert not shared.exists()


@pytest.mark.parametrize("repo", ["../hub", "org/..", "", "org/"])
def test_unknown_repository_is_an_error(cache, repo):
    before = read_tree(cache.path)
    with pytest.raises(StoreError) as caught:
        removal.remove_repo(cache.path, repo)

    assert str(caught.value) == f'model "{repo}" is not in {cache.path}'
    assert read_tree(cache.path) == before


async def test_process_reports_that_a_repository_is_unknown(cache):
    before = read_tree(cache.path)
    frames, code = await process.run("remove", "--cache", cache.path, "--repo", "org/absent")

    assert frames == [messages.Failure(message=f'model "org/absent" is not in {cache.path}')]
    assert code == 1
    assert read_tree(cache.path) == before


def test_missing_cache_is_an_error(tmp_path):
    with pytest.raises(StoreError, match='model "org/model" is not in'):
        removal.plan_repo_removal(tmp_path / "absent", REPO)


def test_only_the_link_to_a_repository_is_removed(cache, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    cache.repo.rename(elsewhere)
    cache.repo.symlink_to(elsewhere)
    before = read_tree(elsewhere)

    assert removal.plan_repo_removal(cache.path, REPO) == removal.remove_repo(cache.path, REPO) == 0
    assert read_tree(elsewhere) == before
    assert not cache.repo.is_symlink()


@needs_permissions
def test_model_stays_complete_if_it_cannot_be_removed(cache):
    cache.repo.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="snapshots"):
            removal.remove_repo(cache.path, REPO)
        assert is_complete(cache)
    finally:
        cache.repo.chmod(0o700)


def test_files_that_huggingface_hub_fails_to_remove_are_an_error(cache, monkeypatch):
    def fail(path, **_):
        if ".locks" not in str(path):
            raise PermissionError(path)

    monkeypatch.setattr("huggingface_hub.utils._cache_manager.shutil.rmtree", fail)

    with pytest.raises(StoreError, match="could not be removed completely"):
        removal.remove_repo(cache.path, REPO)
    assert not has_snapshot(cache)


def test_removal_killed_at_any_step_leaves_the_model_complete_or_hidden_and_can_be_finished(cache, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, interrupt.__file__, str(cache.path), REPO, str(out)]
    result = subprocess.run(command, cwd=process.ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr

    *killed, finished = [Cache(out / str(step)) for step in range(len(list(out.iterdir())))]

    # The first step hides the model.
    assert [has_snapshot(copy) for copy in killed] == [True] + [False] * (len(killed) - 1)
    assert len(killed) > 2 * len(FILES[NEW])
    assert is_complete(killed[0])
    assert_removed(finished)
    for copy in killed:
        # With its ref, the catalog lists the model, so that the removal can be requested again.
        assert not list(copy.blobs.glob("*")) or (copy.repo / "refs" / "main").exists()
        assert removal.plan_repo_removal(copy.path, REPO) == removal.remove_repo(copy.path, REPO)
        assert_removed(copy)
        assert read_tree(copy.twin) == read_tree(cache.twin)


def wait_until_missing(path):
    while path.exists():
        time.sleep(0.001)


@pytest.mark.long
async def test_removal_killed_midway_leaves_nothing_that_huggingface_hub_considers_complete(cache, tmp_path):
    for number in range(20_000):
        (cache.blobs / f"{number:064x}").touch()
    async with process.running("remove", "--cache", cache.path, "--repo", REPO) as (child, _, _):
        await asyncio.to_thread(wait_until_missing, cache.repo / "snapshots")
        child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL

    assert len(list(cache.blobs.iterdir())) > 100
    assert not has_snapshot(cache)
    offline = run_python(
        "import sys; from huggingface_hub import snapshot_download\n"
        "snapshot_download(sys.argv[1], cache_dir=sys.argv[2], local_files_only=True)",
        *(REPO, str(cache.path)),
        home=tmp_path,
    )
    assert "LocalEntryNotFoundError" in offline.stderr
    assert (await process.run("remove", "--cache", cache.path, "--repo", REPO))[1] == 0
    assert_removed(cache)
