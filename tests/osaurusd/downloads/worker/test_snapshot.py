"""Snapshots in a cache without symbolic links."""

import errno
import os

import pytest
from huggingface_hub import constants

from osaurusd.downloads import messages
from osaurusd.models.worker.verification import verify
from osaurusd.wire.admin import FileState
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


TEMPLATES = {"additional_chat_templates/tool_use.jinja": b"{{ tools }}", "additional_chat_templates/rag.jinja": b"rag"}
NOT_TEMPLATES = {
    "additional_chat_templates/run.py": b"code",
    "additional_chat_templates/deep/x.jinja": b"",
    "x/y.jinja": b"",
}


@pytest.mark.parametrize("links", [True, False])
async def test_named_chat_templates_are_pulled(hub, pull, cache, monkeypatch, links, run_client):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    hub.publish("org/named", FILES | TEMPLATES | NOT_TEMPLATES)
    result = await pull("org/named")

    assert isinstance(result, messages.Pulled), result
    snapshot = cache.repo("org/named") / "snapshots" / result.commit
    found = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    assert FILES | TEMPLATES == {name: path.read_bytes() for name, path in found.items()}
    assert links == found["additional_chat_templates/rag.jinja"].is_symlink()
    code = (
        "print(json.dumps(hf_hub_download('org/named', 'additional_chat_templates/rag.jinja', cache_dir=sys.argv[1])))"
    )
    offline = run_client(code, cache.path, HF_HUB_OFFLINE="1")
    assert str(found["additional_chat_templates/rag.jinja"]) == offline
    states = {file.name: file.state for file in verify(snapshot, None, lambda *_: None)}
    assert set(TEMPLATES) <= states.keys()
    if links:
        assert {FileState.INTACT} == set(states.values())


async def test_named_chat_templates_are_added_to_an_existing_snapshot(hub, pull, cache):
    hub.publish("org/named", FILES | TEMPLATES)
    result = await pull("org/named")
    folder = cache.repo("org/named") / "snapshots" / result.commit / "additional_chat_templates"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    assert isinstance(await pull("org/named"), messages.Pulled)
    assert {"rag.jinja", "tool_use.jinja"} == {path.name for path in folder.iterdir()}
