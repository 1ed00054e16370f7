"""Removing and verifying models through the child process, and finding leftovers."""

import hashlib

import pytest

from osaurusd.errors import InternalError, InvalidRequest
from osaurusd.models import maintenance, messages
from osaurusd.models.roots import pulls_folder
from osaurusd.wire.admin import FileState, Leftover

from .disk import make_catalog, model, repo_folder, write, write_hub

TOTAL_BYTES = sum(map(len, model().values()))


async def test_downloaded_model_is_removed_after_a_dry_run(models, hub):
    write_hub(hub, "org/m", model())
    catalog = make_catalog(models, hub)
    record = await catalog.find("m")

    assert await maintenance.remove_model(catalog, record, dry_run=True) == TOTAL_BYTES
    assert repo_folder(hub, "org/m").exists()
    assert await maintenance.remove_model(catalog, record, dry_run=False) == TOTAL_BYTES
    assert not repo_folder(hub, "org/m").exists()


async def test_imported_model_is_removed_after_a_dry_run(models, hub):
    folder = write(models / "m", model())
    catalog = make_catalog(models, hub)
    record = await catalog.find("m")

    assert await maintenance.remove_model(catalog, record, dry_run=True) == TOTAL_BYTES
    assert folder.exists()
    assert await maintenance.remove_model(catalog, record, dry_run=False) == TOTAL_BYTES
    assert not folder.exists()


async def test_model_of_an_extra_root_is_not_removed(models, hub, tmp_path):
    folder = write(tmp_path / "extra" / "m", model())
    catalog = make_catalog(models, hub, tmp_path / "extra")

    with pytest.raises(InvalidRequest, match="belongs to another program"):
        await maintenance.remove_model(catalog, await catalog.find("m"), dry_run=False)
    assert folder.exists()


async def test_failed_removal_is_an_error(models, hub):
    write_hub(hub, "org/m", model())
    catalog = make_catalog(models, hub)
    record = await catalog.find("m")
    await maintenance.remove_model(catalog, record, dry_run=False)

    with pytest.raises(InternalError, match='model "org/m" is not in'):
        await maintenance.remove_model(catalog, record, dry_run=False)


async def test_files_are_hashed_with_progress(models):
    folder = write(models / "m", model())
    reports = []
    names = ["config.json", "model.safetensors"]
    digests = await maintenance.hash_files(folder, names, lambda *report: reports.append(report))

    assert digests == {name: hashlib.sha256(model()[name]).hexdigest() for name in names}
    total = sum(len(model()[name]) for name in names)
    assert (0, total) == reports[0]
    assert (total, total) == reports[-1]
    with pytest.raises(InternalError, match=r"missing\.json: No such file"):
        await maintenance.hash_files(folder, ["missing.json"], lambda *_: None)


async def test_verification_yields_progress_and_a_result(models, hub):
    write(models / "m", model())
    record = await make_catalog(models, hub).find("m")
    *progress, result = [frame async for frame in maintenance.verify_model(record)]

    assert {type(frame) for frame in progress} == {messages.Hashing}
    assert {file.name: file.state for file in result.files} == dict.fromkeys(model(), FileState.UNRECORDED)


async def test_leftovers_are_found_with_their_size_on_the_disk(models, hub):
    importing = write(models / ".importing-1", {"model.safetensors": b"x" * 1000})
    removing = write(models / ".removing-2", {})
    partial = write(pulls_folder(hub) / "models--org--m", {})
    with (partial / "sparse.part").open("wb") as file:
        file.truncate(10_000_000)
    write(models / "complete", model())

    assert await maintenance.find_leftovers(models, hub) == [
        Leftover(path=str(importing), bytes=1000, what="unfinished import"),
        Leftover(path=str(removing), bytes=0, what="unfinished removal"),
        Leftover(path=str(partial), bytes=0, what="partial download"),
    ]


async def test_links_are_not_leftovers(models, hub, tmp_path):
    elsewhere = write(tmp_path / "elsewhere" / "models--org--m", {"file": b"x"})
    (models / ".importing-1").symlink_to(elsewhere)
    pulls_folder(hub).parent.mkdir()
    pulls_folder(hub).symlink_to(elsewhere.parent)

    assert await maintenance.find_leftovers(models, hub) == []
