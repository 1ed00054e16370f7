import os

import msgspec
import pytest

from osaurusd.platform.state_file import StateFile


class Kept(msgspec.Struct, kw_only=True):
    version: int = 1
    names: list[str] = []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "kept.json"


@pytest.fixture
def file(path):
    return StateFile(path, Kept())


def test_written_state_is_read_back(file):
    file.write(Kept(names=["a"]))

    assert Kept(names=["a"]) == file.read()
    assert file.fault is None


def test_a_missing_file_means_the_default_state(file, path):
    assert Kept() == file.read()
    assert file.fault is None
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"names": 1}', b'{"version": 2}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_moved_aside_and_reported(file, path, content):
    path.parent.mkdir()
    path.write_bytes(content)

    assert Kept() == file.read()
    assert "kept.json" in file.fault
    assert content == (path.parent / "kept.damaged.json").read_bytes()
    assert not path.exists()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(file, path, monkeypatch):
    file.write(Kept(names=["a"]))

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        file.write(Kept(names=["b"]))

    assert Kept(names=["a"]) == file.read()
    assert [path] == list(path.parent.iterdir())


def test_files_and_folders_are_private(file, path):
    file.write(Kept())

    assert 0o600 == path.stat().st_mode & 0o777
    assert 0o700 == path.parent.stat().st_mode & 0o777
