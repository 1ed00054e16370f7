import os

import pytest

from osaurusd.models.worker import folder
from osaurusd.rpc import messages

from . import process


@pytest.fixture
def model(tmp_path):
    """An imported model of 30 bytes."""
    path = tmp_path / "models" / "tiny"
    (path / "deeper").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 20)
    (path / "deeper" / "config.json").write_bytes(b"y" * 10)
    return path


async def test_a_folder_goes_with_all_that_is_in_it(model):
    frames, code = await process.run("delete-folder", "--path", model)

    assert (frames, code) == ([messages.Deletion(freed_bytes=30)], 0)
    assert list(model.parent.iterdir()) == []


def test_it_is_out_of_sight_before_anything_in_it_goes(model, monkeypatch):
    monkeypatch.setattr("osaurusd.models.worker.folder.shutil.rmtree", lambda path: None)

    folder.delete(model)

    (left,) = model.parent.iterdir()
    assert left.name.startswith(".removing-")
    assert folder.size_of(left) == 30


async def test_of_a_link_only_the_link_goes(model, tmp_path):
    link = model.parent / "link"
    link.symlink_to(model)

    frames, code = await process.run("delete-folder", "--path", link)

    assert (frames, code) == ([messages.Deletion(freed_bytes=0)], 0)
    assert not link.is_symlink()
    assert folder.size_of(model) == 30


def test_links_in_it_are_not_followed(model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"z")
    (model / "folder").symlink_to(tmp_path / "elsewhere")
    (model / "file").symlink_to(tmp_path / "elsewhere" / "file")

    assert folder.delete(model) == 30
    assert (tmp_path / "elsewhere" / "file").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent/tiny", "there is no folder"),
        ("models/absent", "there is no such folder"),
        ("models/tiny/model.safetensors", "it is not a folder"),
    ],
)
async def test_what_is_no_folder_is_refused(model, tmp_path, path, reason):
    frames, code = await process.run("delete-folder", "--path", tmp_path / path)

    assert code == 1
    assert frames[0].message.startswith(f"{tmp_path / path}: {reason}")
    assert folder.size_of(model) == 30


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
async def test_what_may_not_be_removed_is_named(model):
    model.parent.chmod(0o500)
    frames, code = await process.run("delete-folder", "--path", model)
    model.parent.chmod(0o700)

    assert code == 1
    assert frames == [messages.StoreFailure(message=f"{model}: Permission denied")]
    assert folder.size_of(model) == 30
