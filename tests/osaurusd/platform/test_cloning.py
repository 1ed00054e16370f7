"""Copies that share blocks with their source."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys

import pytest

from osaurusd.platform.cloning import clone_file

CONTENT = os.urandom(200_000)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_file_systems_without_clones_leave_no_file(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", fail)
    monkeypatch.setattr(sys, "platform", "linux")
    with source.open("rb") as file:
        assert not clone_file(file.fileno(), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_full_disk_is_an_error(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "ioctl", fail)
    monkeypatch.setattr(sys, "platform", "linux")
    with source.open("rb") as file, pytest.raises(OSError, match="No space left"):
        clone_file(file.fileno(), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_existing_files_are_not_replaced(source, tmp_path):
    (tmp_path / "copy").write_bytes(b"mine")
    with source.open("rb") as file, contextlib.suppress(FileExistsError):
        assert not clone_file(file.fileno(), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"mine"


@pytest.mark.skipif(sys.platform != "darwin", reason="APFS")
def test_apfs_shares_blocks(source, tmp_path):
    with source.open("rb") as file:
        assert clone_file(file.fileno(), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.fixture
def reflink_folder(tmp_path):
    """A folder on a small file system that can share blocks."""
    maker = next((tool for tool in ("mkfs.btrfs", "mkfs.xfs") if shutil.which(tool)), None)
    if sys.platform != "linux" or os.geteuid() != 0 or maker is None:
        pytest.skip("needs root and mkfs.btrfs or mkfs.xfs")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400_000_000)
    subprocess.run([maker, str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_blocks_are_shared_where_the_file_system_can(reflink_folder):
    source = reflink_folder / "source"
    with source.open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(1_000_000))
        os.fsync(file.fileno())
    before = shutil.disk_usage(reflink_folder).free
    with source.open("rb") as file:
        assert clone_file(file.fileno(), reflink_folder / "copy")
    os.sync()
    assert before - shutil.disk_usage(reflink_folder).free < 20_000_000
    assert (reflink_folder / "copy").read_bytes() == source.read_bytes()
