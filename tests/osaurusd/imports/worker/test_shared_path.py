"""Importing from open files instead of paths."""

import json
import os
from pathlib import Path

import pytest

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker.importer import import_model
from osaurusd.imports.worker.shared_path import share
from osaurusd.wire.open_files import Offer
from tests.models import make_tiny


@pytest.fixture
def share_and_hide():
    """Open a file or folder, move it away so that no path leads to it, and return its shared path."""
    opened = []

    def share_and_hide(source):
        files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        descriptors = [os.open(path, os.O_RDONLY) for path in files]
        opened.extend(descriptors)
        names = [path.relative_to(source).as_posix() for path in files] if source.is_dir() else [source.name]
        offer = Offer(folder=source.is_dir(), names=names)
        source.rename(source.with_name("moved"))
        return share(source, offer, descriptors)

    yield share_and_hide
    for descriptor in opened:
        os.close(descriptor)


def read_all(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "osaurus.json"
    }


def import_to(dest, source):
    dest.mkdir()
    import_model(source, dest, lambda *_: None)
    return read_all(dest)


def test_folder_is_imported_like_its_path(tmp_path, tiny_tokenizer, share_and_hide):
    source = make_tiny(tmp_path / "tiny", tiny_tokenizer)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    expected = import_to(tmp_path / "one", source)
    assert "additional_chat_templates/tool_use.jinja" in expected

    assert expected == import_to(tmp_path / "two", share_and_hide(source))
    assert "tiny" == json.loads((tmp_path / "two" / "osaurus.json").read_bytes())["source"]


def test_gguf_file_is_imported_like_its_path(tmp_path, tiny, share_and_hide):
    source = tiny.write(tmp_path / "tiny.gguf")
    expected = import_to(tmp_path / "one", source)

    assert expected == import_to(tmp_path / "two", share_and_hide(source))


def test_rejection_names_the_file(tmp_path, share_and_hide):
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"no")
    with pytest.raises(ImportFailed, match=r"broken\.gguf: not a GGUF file"):
        import_to(tmp_path / "dest", share_and_hide(source))


def test_named_pipe_is_rejected_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    descriptor = os.open(tmp_path / "config.json", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(ImportFailed, match=r"config\.json: it is not a regular file"):
            import_to(tmp_path / "dest", share(Path("/m"), Offer(True, ["config.json"]), [descriptor]))
    finally:
        os.close(descriptor)


def test_named_pipe_is_no_model_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(ImportFailed, match=r"pipe: it is neither a model folder nor a GGUF file"):
            import_to(tmp_path / "dest", share(tmp_path / "pipe", Offer(False, ["pipe"]), [descriptor]))
    finally:
        os.close(descriptor)


def test_files_that_were_not_passed_do_not_exist(tmp_path, share_and_hide):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.json").touch()
    source = share_and_hide(tmp_path / "m")

    assert ["a.json"] == [path.name for path in source.glob("*.json")]
    assert (source / "a.json").is_file()
    assert not (source / "b.json").exists()
    with pytest.raises(FileNotFoundError):
        (source / "b.json").open("rb")
