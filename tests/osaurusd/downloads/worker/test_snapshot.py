"""Snapshots in a cache without symbolic links."""

import errno
import os

import pytest
from huggingface_hub import constants

from osaurusd.downloads import messages
from tests.osaurusd.models import disk

from .conftest import FILES, SHARDS


@pytest.fixture(params=["setting", "EPERM"])
def no_links(request, monkeypatch):
    """A cache without symbolic links, because of HF_HUB_DISABLE_SYMLINKS or of the disk."""
    if request.param == "setting":
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
        return

    def reject(*args, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", reject)


async def test_files_are_placed_without_links_like_huggingface_hub_does(hub, pull, cache, no_links, run_client):
    files = FILES | {"copy of README.txt": FILES["README.md"], "LICENSE": FILES["README.md"]}
    hub.publish("org/copies", files)
    result = await pull("org/copies")

    assert isinstance(result, messages.Pulled), result
    snapshot = cache.repo("org/copies") / "snapshots" / result.commit
    assert files == cache.snapshot("org/copies")
    assert not any(path.is_symlink() for path in snapshot.iterdir())
    assert [] == cache.blobs()
    assert [] == cache.staged()
    offline = run_client(
        "print(json.dumps(snapshot_download('org/copies', cache_dir=sys.argv[1])))",
        cache.path,
        HF_HUB_OFFLINE="1",
    )
    assert str(snapshot) == offline
    hub.reset()
    assert isinstance(await pull("org/copies"), messages.Pulled)
    assert 0 == hub.served


async def test_pull_without_links_resumes_and_uses_blobs(hub, pull, cache, monkeypatch):
    hub.publish("org/copies", FILES)
    assert isinstance(await pull("org/copies"), messages.Pulled)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    changed = FILES | {SHARDS[1]: disk.tensors(200_000)}
    hub.publish("org/copies", changed)
    hub.fault("flip", SHARDS[1], times=-1)
    assert isinstance(await pull("org/copies"), messages.Failure)
    hub.reset()

    assert isinstance(await pull("org/copies"), messages.Pulled)
    assert changed == cache.snapshot("org/copies")
    assert 200_000 < hub.served < 300_000
