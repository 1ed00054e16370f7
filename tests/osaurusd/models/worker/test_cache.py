import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import scan_cache_dir

from osaurusd.models.worker import cache as store
from osaurusd.models.worker.failure import StoreError
from osaurusd.rpc import messages

from . import interrupt, process
from .conftest import FILES, NEW, REPO, TWIN, Cache, client

ALL = sum(len(content) for content in {content for files in FILES.values() for content in files.values()})
"""The bytes of both revisions; what they share is there once."""


def tree(path):
    """Every file, link and folder below a path, with content and target."""
    return {
        str(entry.relative_to(path)): str(entry.readlink())
        if entry.is_symlink()
        else (entry.read_bytes() if entry.is_file() else None)
        for entry in path.rglob("*")
    }


def looks_complete(cache):
    """Whether a program could take what lies in the cache for the model."""
    return any((cache.repo / "snapshots").glob("*")) if cache.repo.exists() else False


def is_complete(cache):
    return all(
        (cache.repo / "snapshots" / commit / name).read_bytes() == content
        for commit, files in FILES.items()
        for name, content in files.items()
    )


def assert_gone(cache):
    """Nothing of the model is left, and nothing that the library would complain of."""
    assert not cache.repo.exists()
    assert not cache.locks.exists()
    found = scan_cache_dir(cache.path)
    assert [repo.repo_id for repo in found.repos] == [TWIN]
    assert found.warnings == []
    assert not found.incomplete_files


async def test_a_plan_says_what_the_deletion_frees(cache):
    before = tree(cache.path)

    planned = await process.run("plan", "--cache", cache.path, "--repo", REPO)
    untouched = tree(cache.path)
    deleted = await process.run("delete", "--cache", cache.path, "--repo", REPO)

    assert planned == deleted == ([messages.Deletion(freed_bytes=ALL)], 0)
    assert untouched == before
    assert_gone(cache)


def test_other_models_stay_as_they_are_even_with_the_same_commit(cache):
    """delete_revisions knows repos by their commits only."""
    before = tree(cache.twin), tree(cache.path / ".locks" / cache.twin.name)

    store.delete(cache.path, REPO)

    assert (tree(cache.twin), tree(cache.path / ".locks" / cache.twin.name)) == before
    assert store.plan(cache.path, TWIN) == sum(map(len, FILES[NEW].values()))


def test_the_twin_goes_alone_too(cache):
    before = tree(cache.repo)

    store.delete(cache.path, TWIN)

    assert tree(cache.repo) == before
    assert not cache.twin.exists()


def test_partial_downloads_and_blobs_that_no_revision_uses_count_and_go(cache):
    (cache.blobs / f"{'c' * 64}.0123abcd.incomplete").write_bytes(b"x" * 1000)
    (cache.blobs / ("d" * 64)).write_bytes(b"y" * 100)

    assert store.plan(cache.path, REPO) == ALL + 1100
    assert store.delete(cache.path, REPO) == ALL + 1100
    assert_gone(cache)


def test_a_repo_of_nothing_but_a_partial_download_can_go(cache):
    store.delete(cache.path, REPO)
    cache.blobs.mkdir(parents=True)
    (cache.blobs / f"{'c' * 64}.incomplete").write_bytes(b"x" * 1000)

    assert store.plan(cache.path, REPO) == 1000
    assert store.delete(cache.path, REPO) == 1000
    assert_gone(cache)


def test_a_repo_without_revisions_can_go(cache):
    store.delete(cache.path, REPO)
    (cache.repo / "snapshots").mkdir(parents=True)

    assert store.delete(cache.path, REPO) == 0
    assert_gone(cache)


def test_a_damaged_repo_can_go(cache):
    blob = cache.blob("config.json")
    size = blob.stat().st_size
    blob.unlink()
    assert scan_cache_dir(cache.path).warnings

    assert store.plan(cache.path, REPO) >= ALL - size
    store.delete(cache.path, REPO)
    assert_gone(cache)


SHARE = """
import sys
from pathlib import Path
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
cache, name = Path(sys.argv[1]), sys.argv[2]
for repo in sys.argv[3:]:
    blob = cache / repo / "blobs" / name
    assert publish_blob_to_shared_store(
        blob_path=str(blob), xet_hash="e" * 64, cache_dir=cache, expected_size=blob.stat().st_size
    )
"""


def test_what_another_repo_shares_stays_and_is_not_counted(cache, tmp_path):
    """As the client keeps what it downloads by Xet: one file in the cache's own `blobs`, and links to it."""
    shard = "model-00001-of-00002.safetensors"
    shared = cache.blob(shard)
    done = client(SHARE, str(cache.path), shared.name, cache.repo.name, cache.twin.name, home=tmp_path)
    assert done.returncode == 0, done.stderr
    payload = shared.resolve()
    size = payload.stat().st_size

    assert store.plan(cache.path, REPO) == store.delete(cache.path, REPO) == ALL - size
    assert (cache.twin / "snapshots" / NEW / shard).read_bytes() == FILES[NEW][shard]
    assert_gone(cache)
    # The last to use it takes it along.
    assert store.delete(cache.path, TWIN) == sum(map(len, FILES[NEW].values()))
    assert not payload.exists()


@pytest.mark.parametrize("repo", ["org/absent", "../hub", "org/..", "", "org/"])
async def test_a_repo_that_is_not_there_is_named(cache, repo):
    before = tree(cache.path)

    frames, code = await process.run("delete", "--cache", cache.path, "--repo", repo)

    assert frames == [messages.StoreFailure(message=f"{repo}: it is not in {cache.path}")]
    assert code == 1
    assert tree(cache.path) == before


def test_a_cache_that_is_not_there_has_no_model(tmp_path):
    with pytest.raises(StoreError, match="org/model: it is not in"):
        store.plan(tmp_path / "absent", REPO)


def test_of_a_repo_that_is_a_link_only_the_link_goes(cache, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    cache.repo.rename(elsewhere)
    cache.repo.symlink_to(elsewhere)
    before = tree(elsewhere)

    assert store.plan(cache.path, REPO) == store.delete(cache.path, REPO) == 0
    assert tree(elsewhere) == before
    assert not cache.repo.is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_what_may_not_be_removed_is_named_and_the_model_stays_whole(cache):
    cache.repo.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="snapshots"):
            store.delete(cache.path, REPO)
        assert is_complete(cache)
    finally:
        cache.repo.chmod(0o700)


def test_what_the_library_leaves_is_a_failure(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.shutil.rmtree", refuse)

    with pytest.raises(StoreError, match="something in it could not be removed"):
        store.delete(cache.path, REPO)
    assert not looks_complete(cache)


def refuse(path, **_):
    if ".locks" not in str(path):
        raise PermissionError(path)


def test_killed_at_any_step_it_leaves_the_model_whole_or_gone_and_a_second_deletion_finishes(cache, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, interrupt.__file__, str(cache.path), REPO, str(out)]
    done = subprocess.run(command, cwd=process.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    *killed, finished = [Cache(out / str(step)) for step in range(len(list(out.iterdir())))]

    whole = [looks_complete(copy) for copy in killed]
    # One step makes it disappear.
    assert whole == [True] + [False] * (len(killed) - 1)
    assert len(killed) > 2 * len(FILES[NEW])
    assert is_complete(killed[0])
    assert_gone(finished)
    for copy in killed:
        # By which the catalog lists what is left, so that someone can ask for the second deletion.
        assert not list(copy.blobs.glob("*")) or (copy.repo / "refs" / "main").exists()
        assert store.plan(copy.path, REPO) == store.delete(copy.path, REPO)
        assert_gone(copy)
        assert tree(copy.twin) == tree(cache.twin)


def wait_until_gone(path):
    while path.exists():
        time.sleep(0.001)


async def test_a_real_kill_in_the_middle_leaves_nothing_that_a_client_takes_for_the_model(cache, tmp_path):
    for number in range(20_000):
        (cache.blobs / f"{number:064x}").touch()
    async with process.running("delete", "--cache", cache.path, "--repo", REPO) as (child, _, _):
        await asyncio.to_thread(wait_until_gone, cache.repo / "snapshots")
        child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL

    assert len(list(cache.blobs.iterdir())) > 100
    assert not looks_complete(cache)
    offline = client(
        "import sys; from huggingface_hub import snapshot_download\n"
        "snapshot_download(sys.argv[1], cache_dir=sys.argv[2], local_files_only=True)",
        *(REPO, str(cache.path)),
        home=tmp_path,
    )
    assert "LocalEntryNotFoundError" in offline.stderr
    assert (await process.run("delete", "--cache", cache.path, "--repo", REPO))[1] == 0
    assert_gone(cache)
