"""Imports by a scripted child process: its files become a model, and a failed import leaves no files."""

import asyncio
import contextlib
import errno
import gc
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

import tests
from osaurusd.errors import ImportFailed, InvalidRequest, NameTaken, OsaurusError
from osaurusd.imports import manager as module
from osaurusd.imports import messages
from osaurusd.imports.manager import ImportManager
from osaurusd.models import scan as scan_module
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import STAGING_PREFIXES
from osaurusd.models.scan import Scanner
from osaurusd.rpc import framing
from osaurusd.wire.admin import Availability
from tests.osaurusd.models.disk import embedder, make_catalog, model, write, write_hub
from tests.osaurusd.pool.helpers import until

FAKE_IMPORTER = Path(tests.__file__).parent / "fakes" / "importer.py"


@pytest.fixture(autouse=True)
def _fake_importer(monkeypatch):
    monkeypatch.setattr(module, "IMPORTER_COMMAND", (sys.executable, str(FAKE_IMPORTER)))


@pytest.fixture
def catalog(models, hub):
    return make_catalog(models, hub)


@pytest.fixture
def imports(catalog):
    return ImportManager(catalog)


@pytest.fixture
def complete_model(tmp_path):
    """The path of a folder with a usable model that has a chat template."""
    return str(write(tmp_path / "complete", model() | {"chat_template.jinja": b"{{ messages }}"}))


@pytest.fixture
def source(tmp_path):
    """Writes a source file with the steps of the fake importer."""

    def source(*steps, name="My-Model-Q4_0.gguf"):
        path = tmp_path / name
        path.write_text(json.dumps(steps), encoding="utf-8")
        return str(path)

    return source


async def collect(events):
    return [event async for event in events]


async def error_type(events):
    """Return the type of the error of an import, after collecting garbage so that a leaked socket fails this test."""
    try:
        await collect(events)
    except (OSError, ValueError, OsaurusError) as error:
        kind = type(error)
    gc.collect()
    return kind


def list_names(models):
    return sorted(path.name for path in models.iterdir())


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_progress_precedes_the_model(imports, catalog, models, source, complete_model):
    path = source(["progress", "hash", 0, 10], ["copy", complete_model], ["progress", "convert", 10, 10], ["imported"])
    *progress, record = await collect(imports.run(path, None))
    assert progress == [
        messages.Progress(stage="hash", done=0, total=10),
        messages.Progress(stage="convert", done=10, total=10),
    ]
    assert isinstance(record, ModelRecord)
    assert (record.name, record.repo, record.source) == ("my-model", "my-model", "imported")
    assert (record.state, record.path) == (Availability.AVAILABLE, models / "my-model")
    assert list_names(models) == ["my-model"]
    assert await catalog.find("my-model") == record


@pytest.mark.parametrize(
    ("files", "notes"),
    [
        pytest.param(model(), [module.NO_TEMPLATE], id="language model"),
        pytest.param(embedder(), [], id="embedding model"),
    ],
)
async def test_a_language_model_without_a_chat_template_is_noted(imports, source, tmp_path, files, notes):
    folder = str(write(tmp_path / "plain", files))
    *events, record = await collect(imports.run(source(["copy", folder], ["imported"]), "m"))
    assert isinstance(record, ModelRecord)
    assert events == [messages.Note(text=text) for text in notes]


async def test_a_model_gets_the_requested_name(imports, models, source, complete_model):
    (record,) = await collect(imports.run(source(["copy", complete_model], ["imported"]), "other_name-1.5b"))
    assert record.name == "other_name-1.5b"
    assert list_names(models) == ["other_name-1.5b"]


async def test_a_folder_keeps_its_whole_name(imports, source, complete_model):
    (record,) = await collect(imports.run(source(["copy", complete_model], ["imported"], name="Qwen2.5 Mine"), None))
    assert record.name == "qwen2.5-mine"


async def test_the_models_folder_is_created_if_missing(tmp_path, hub, source, complete_model):
    imports = ImportManager(make_catalog(tmp_path / "data" / "models", hub))
    await collect(imports.run(source(["copy", complete_model], ["imported"]), "m"))
    assert list_names(tmp_path / "data" / "models") == ["m"]


async def test_the_models_folder_is_synced_before_the_model_is_reported(
    imports, models, source, complete_model, monkeypatch
):
    sync, synced = os.fsync, []

    def observed_sync(descriptor):
        sync(descriptor)
        if os.path.sameopenfile(descriptor, folder):
            synced.append(list_names(models))

    events = imports.run(source(["progress", "hash", 0, 1], ["copy", complete_model], ["imported"]), "m")
    await anext(events)
    folder = os.open(models, os.O_RDONLY)
    try:
        monkeypatch.setattr(os, "fsync", observed_sync)
        assert (await anext(events)).name == "m"
        assert synced == [["m"]]
    finally:
        os.close(folder)
        await events.aclose()


async def test_an_import_fails_if_the_models_folder_cannot_be_synced(
    imports, catalog, models, source, complete_model, monkeypatch
):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ImportFailed, match="m: Input/output error"):
        await collect(imports.run(source(["copy", complete_model], ["imported"]), "m"))
    assert list_names(models) == []
    assert await catalog.records() == []


EXITED = "My-Model-Q4_0.gguf: the import process exited unexpectedly"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        pytest.param([["failure", "not a GGUF file"]], "not a GGUF file", id="rejected"),
        pytest.param(
            [["kill", signal.SIGKILL]],
            f"{EXITED} (killed by SIGKILL)",
            id="killed",
        ),
        pytest.param(
            [["kill", signal.SIGTERM]],
            f"{EXITED} (killed by SIGTERM)",
            id="terminated",
        ),
        pytest.param([["exit", 3]], f"{EXITED} (exit code 3)", id="exited"),
        pytest.param([], f"{EXITED} (exit code 0)", id="no result"),
        pytest.param([["imported"]], "m: config.json is missing", id="no files"),
    ],
)
async def test_a_failure_is_reported_and_leaves_no_files(imports, catalog, models, source, steps, message):
    events = imports.run(source(["progress", "hash", 0, 1], ["touch", "model.safetensors"], *steps), "m")
    assert await anext(events) == messages.Progress(stage="hash", done=0, total=1)
    with pytest.raises(ImportFailed) as caught:
        await anext(events)
    assert caught.value.message == message
    assert list_names(models) == []
    assert await catalog.records() == []


async def test_a_model_that_cannot_be_served_is_removed(imports, catalog, models, source, tmp_path):
    folder = str(write(tmp_path / "unsupported", model(model_type="nonsense")))
    with pytest.raises(ImportFailed) as caught:
        await collect(imports.run(source(["copy", folder], ["imported"]), "m"))
    assert caught.value.message == "m: mlx_lm does not support the architecture `nonsense`"
    assert list_names(models) == []
    assert await catalog.records() == []


async def test_invalid_frames_end_the_import_and_leave_no_files(imports, models, source):
    path = source(["progress", "{pid}", 0, 1], ["raw", "\0\0\0\1\0\0\0\0x"], ["hang"])
    events = imports.run(path, "m")
    pid = int((await anext(events)).stage)
    with pytest.raises((framing.FrameError, OsaurusError)):
        async with asyncio.timeout(60):
            await anext(events)
    assert not is_running(pid)
    assert list_names(models) == []


async def test_a_failed_start_leaves_no_files(imports, models, source, monkeypatch):
    monkeypatch.setattr(module, "IMPORTER_COMMAND", ("/nowhere/python",))
    assert issubclass(await error_type(imports.run(source(), "m")), (OSError, OsaurusError))
    assert list_names(models) == []


async def test_closing_the_iterator_kills_the_process_and_leaves_no_files(imports, models, source):
    events = imports.run(source(["touch", "weights"], ["progress", "{pid}", 0, 1], ["hang"]), "m")
    pid = int((await anext(events)).stage)
    assert is_running(pid)
    (staging,) = list_names(models)
    assert staging.startswith(STAGING_PREFIXES[0])
    assert (models / staging / "weights").exists()
    async with asyncio.timeout(60):
        await events.aclose()
    assert not is_running(pid)
    assert list_names(models) == []


async def test_cancelling_an_import_kills_its_process_and_leaves_no_files(imports, models, source):
    started = asyncio.get_running_loop().create_future()

    async def run():
        path = source(["progress", "{pid}", 0, 1], ["hang"])
        async with contextlib.aclosing(imports.run(path, "m")) as events:
            async for event in events:
                started.set_result(int(event.stage))

    task = asyncio.create_task(run())
    pid = await started
    task.cancel()
    assert await asyncio.wait([task], timeout=60) == ({task}, set())
    assert task.cancelled()
    assert not is_running(pid)
    assert list_names(models) == []


@pytest.mark.parametrize("last_step", ["imported", "failure"])
async def test_cancelling_an_import_during_its_cleanup_frees_the_name(
    imports, models, source, complete_model, monkeypatch, last_step
):
    loop, rmtree = asyncio.get_running_loop(), shutil.rmtree
    removing, resume = asyncio.Event(), threading.Event()

    def blocking_rmtree(path, **options):
        loop.call_soon_threadsafe(removing.set)
        assert resume.wait(60)
        rmtree(path, **options)

    end = ["imported"] if last_step == "imported" else ["failure", "it is damaged"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", blocking_rmtree)
        task = asyncio.create_task(collect(imports.run(source(["copy", complete_model], end), "m")))
        await removing.wait()
        task.cancel()
        await asyncio.wait([task], timeout=60)
        assert task.cancelled()
        resume.set()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=60)
        assert imports.running == set()
    rmtree(models / "m", ignore_errors=True)
    (record,) = await collect(imports.run(source(["copy", complete_model], ["imported"]), "m"))
    assert record.name == "m"
    assert list_names(models) == ["m"]


async def test_name_is_free_once_the_model_is_reported(imports, models, source, complete_model):
    path = source(["copy", complete_model], ["imported"])
    events = imports.run(path, "m")
    assert (await anext(events)).name == "m"
    shutil.rmtree(models / "m")
    await collect(imports.run(path, "m"))
    await events.aclose()
    assert list_names(models) == ["m"]


async def test_a_running_import_is_not_a_model(imports, catalog, source):
    events = imports.run(source(["progress", "hash", 0, 1], ["hang"]), "m")
    await anext(events)
    await catalog.refresh()
    assert await catalog.records() == []
    await events.aclose()


async def test_the_importer_is_given_source_and_staging_folder(imports, models, source, tmp_path, monkeypatch):
    script = tmp_path / "record_arguments.py"
    script.write_text(f"import json, sys\njson.dump(sys.argv[1:], open({str(tmp_path / 'argv')!r}, 'w'))\n")
    monkeypatch.setattr(module, "IMPORTER_COMMAND", (sys.executable, str(script)))
    path = source()
    with pytest.raises(ImportFailed):
        await collect(imports.run(path, "m"))
    flag, number, *paths = json.loads((tmp_path / "argv").read_text())
    assert (flag, number.isdecimal(), paths[0]) == ("--fd", True, path)
    assert Path(paths[1]).parent == models
    assert Path(paths[1]).name.startswith(STAGING_PREFIXES[0])


@pytest.mark.parametrize("name", ["mine", "org-model", "half"])
async def test_a_taken_name_is_rejected_before_the_import_starts(imports, models, hub, source, name):
    write(models / "mine", model())
    write_hub(hub, "org/Org-Model-4bit", model())
    write_hub(hub, "org/half", {})
    with pytest.raises(NameTaken) as caught:
        await collect(imports.run(source(["imported"]), name))
    assert caught.value.param == "name"
    assert f"`{name}`" in caught.value.message
    assert list_names(models) == ["mine"]


async def test_a_name_taken_during_the_import_is_rejected(imports, catalog, models, source):
    await catalog.records()
    write(models / "my-model", model())
    with pytest.raises(NameTaken):
        await collect(imports.run(source(["imported"]), None))


async def test_second_import_with_the_same_name_is_rejected_at_once(imports, catalog, models, source, complete_model):
    steps = ["progress", "hash", 0, 1], ["copy", complete_model], ["imported"]
    first, second = (imports.run(source(*steps, name=f"{number}.gguf"), "m") for number in range(2))
    await anext(first)
    with pytest.raises(NameTaken, match="`m` is being created") as caught:
        await anext(second)
    assert caught.value.param == "name"
    (record,) = await collect(first)
    assert record.path == models / "m"
    assert list_names(models) == ["m"]
    assert (await catalog.find("m")).state is Availability.AVAILABLE


async def test_a_model_created_concurrently_is_kept(imports, models, source, complete_model):
    events = imports.run(source(["progress", "hash", 0, 1], ["copy", complete_model], ["imported"]), "m")
    await anext(events)
    write(models / "m", {"notes.txt": b"mine"})
    with pytest.raises(NameTaken):
        await collect(events)
    assert list_names(models) == ["m"]
    assert (models / "m" / "notes.txt").read_bytes() == b"mine"


async def test_a_concurrent_listing_does_not_affect_an_import(
    imports, catalog, models, source, complete_model, monkeypatch
):
    events = imports.run(source(["progress", "hash", 0, 1], ["copy", complete_model], ["imported"]), "m")
    await anext(events)
    loop, scan, rename = asyncio.get_running_loop(), Scanner.scan, os.rename
    scanned, renamed, resume = asyncio.Event(), asyncio.Event(), threading.Event()

    def blocking_scan(scanner):
        records = scan(scanner)
        loop.call_soon_threadsafe(scanned.set)
        assert resume.wait(60)
        return records

    def observed_rename(*paths):
        rename(*paths)
        loop.call_soon_threadsafe(renamed.set)

    monkeypatch.setattr(Scanner, "scan", blocking_scan)
    monkeypatch.setattr(os, "rename", observed_rename)
    listing = asyncio.create_task(catalog.refresh())
    await scanned.wait()
    importing = asyncio.create_task(collect(events))
    await renamed.wait()
    await asyncio.sleep(0.02)  # until the import requests a scan too; a shorter wait can only hide the defect
    resume.set()
    await listing
    (record,) = await importing
    assert (record.name, record.state) == ("m", Availability.AVAILABLE)


async def test_a_model_on_a_slow_disk_is_awaited(imports, catalog, models, source, complete_model, monkeypatch):
    events = imports.run(source(["progress", "hash", 0, 1], ["copy", complete_model], ["imported"]), "m")
    await anext(events)
    scan, resume = Scanner.scan, threading.Event()

    def blocking_scan(scanner):
        assert resume.wait(60)
        return scan(scanner)

    monkeypatch.setattr(Scanner, "scan", blocking_scan)
    monkeypatch.setattr(scan_module, "SCAN_TIMEOUT_SECONDS", 0.05)
    importing = asyncio.create_task(collect(events))
    await until(lambda: catalog.faults)
    resume.set()
    (record,) = await importing
    assert record.path == models / "m"


async def test_a_model_that_is_removed_before_it_is_listed_is_an_error(imports, source, complete_model, monkeypatch):
    def remove_scanned(scanner):
        if scanner.root.source == "imported":
            shutil.rmtree(scanner.root.path / "m", ignore_errors=True)
        return scan(scanner)

    scan = Scanner.scan
    monkeypatch.setattr(Scanner, "scan", remove_scanned)
    with pytest.raises(ImportFailed, match="it is missing"):
        await collect(imports.run(source(["copy", complete_model], ["imported"]), "m"))


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "../x", ".importing-x", "-x", "a b", "x" * 97, "Ü", "a\0"])
async def test_an_invalid_name_is_rejected(imports, models, source, name):
    with pytest.raises(InvalidRequest) as caught:
        await collect(imports.run(source(["imported"]), name))
    assert (caught.value.param, caught.value.message.startswith("`name`: ")) == ("name", True)
    assert list_names(models) == []


async def test_a_model_that_cannot_be_found_is_an_error(imports, models, source, complete_model, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    events = imports.run(source(["progress", "hash", 0, 1], ["copy", complete_model], ["imported"]), "m")
    await anext(events)
    monkeypatch.setattr(Scanner, "scan", fail)
    with pytest.raises(ImportFailed, match="m: the model was written, but it is missing in"):
        await collect(events)
    assert list_names(models) == ["m"]


@pytest.mark.parametrize("path", ["model.gguf", "./model.gguf", "../model.gguf", "~/model.gguf", ""])
async def test_a_relative_path_is_rejected(imports, models, path):
    with pytest.raises(InvalidRequest) as caught:
        await collect(imports.run(path, "m"))
    assert caught.value.param == "path"
    assert list_names(models) == []


async def test_an_invalid_path_is_rejected(imports, models):
    assert issubclass(await error_type(imports.run("/models/a\0b.gguf", "m")), OsaurusError)
    assert list_names(models) == []


def test_sweeping_removes_unfinished_imports_only(imports, models):
    write(models / f"{STAGING_PREFIXES[0]}0123" / "sub", {"model.safetensors": b"x"})
    write(models / f"{STAGING_PREFIXES[0]}4567", {})
    write(models / "mine", model())
    write(models / ".hidden", {"notes": b""})
    imports.sweep()
    assert list_names(models) == [".hidden", "mine"]


def test_sweeping_a_missing_folder_does_nothing(tmp_path, hub):
    ImportManager(make_catalog(tmp_path / "none", hub)).sweep()
    assert not (tmp_path / "none").exists()


def test_an_import_runs_the_converter_in_a_child_process(monkeypatch):
    monkeypatch.undo()
    assert module.IMPORTER_COMMAND == (sys.executable, "-P", "-m", "osaurusd.imports.worker")
