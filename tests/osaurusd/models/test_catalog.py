"""Looking models up: by any of their names, in what the last scan found, or a new one."""

import asyncio
import shutil
import threading
import time

import pytest

from osaurusd.errors import ModelNotDownloaded, ModelNotFound, NameTaken
from osaurusd.models import catalog as module
from osaurusd.models import watch
from osaurusd.models.scan import Scanner
from osaurusd.wire.admin import ModelState

from .disk import config, make_catalog, model, repo_folder, write, write_hub


@pytest.fixture
def catalog(models, hub):
    return make_catalog(models, hub)


@pytest.fixture
def scans(monkeypatch):
    """A list that grows by one with each scan of the hub cache."""
    begun = []
    real = Scanner.scan

    def counted(scanner):
        if scanner.root.source == "hub":
            begun.append(scanner.root)
        return real(scanner)

    monkeypatch.setattr(Scanner, "scan", counted)
    return begun


class HeldScan:
    """A scan of the hub cache that has looked at the disk and is held up before it says so."""

    def __init__(self, monkeypatch):
        self.count = 0
        loop = asyncio.get_running_loop()
        real = Scanner.scan
        self.looked = asyncio.Event()
        self.go_on = threading.Event()

        def held(scanner):
            found = real(scanner)
            if scanner.root.source == "hub":
                self.count += 1
                loop.call_soon_threadsafe(self.looked.set)
                assert self.go_on.wait(30)
            return found

        monkeypatch.setattr(Scanner, "scan", held)


@pytest.mark.parametrize(
    "name",
    [
        "gemma-2-2b-instruct",
        "Gemma-2-2B-Instruct",
        "mlx-community/gemma-2-2b-it-4bit",
        "MLX-Community/Gemma-2-2b-IT-4bit",
    ],
)
async def test_a_model_is_found_by_name_and_by_repo_id_in_any_case(catalog, hub, name):
    snapshot = write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", model())
    assert (await catalog.find(name)).path == snapshot


async def test_an_imported_model_is_found_by_its_name(catalog, models):
    write(models / "mine", model())
    assert (await catalog.find("MINE")).path == models / "mine"


async def test_a_model_whose_name_was_taken_is_found_by_its_repo_id(catalog, hub):
    write_hub(hub, "one/m", model())
    other = write_hub(hub, "two/m", model())
    for repo in ("one/m", "two/m"):
        assert (await catalog.find(repo)).repo == repo
    assert other in {(await catalog.find(name)).path for name in ("m", "one/m", "two/m")}


@pytest.mark.parametrize("name", ["", "m/", "org", "org/m-4bit", "mm", " m", "m ", "../m"])
async def test_other_names_are_not_found(catalog, hub, name):
    write_hub(hub, "org/m", model())
    with pytest.raises(ModelNotFound) as refusal:
        await catalog.find(name)
    assert refusal.value.param == "model"
    assert f"there is no model `{name}`" in refusal.value.message


async def test_near_names_are_suggested(catalog, hub):
    for repo in ("mlx-community/Llama-3.2-1B-Instruct-4bit", "org/zephyr"):
        write_hub(hub, repo, model())
    with pytest.raises(ModelNotFound) as refusal:
        await catalog.find("llama-3.2-1b")
    assert refusal.value.message == "there is no model `llama-3.2-1b`; did you mean `llama-3.2-1b-instruct`?"


async def test_only_models_that_can_be_served_are_suggested(catalog, hub):
    write_hub(hub, "org/zephyr-1", {"config.json": config()})
    write_hub(hub, "org/zephyr-2", model())
    with pytest.raises(ModelNotFound) as refusal:
        await catalog.find("zephyr")
    assert refusal.value.message.endswith("did you mean `zephyr-2`?")


async def test_without_near_names_all_are_listed(catalog, hub):
    for repo in ("org/zephyr", "org/phi"):
        write_hub(hub, repo, model())
    with pytest.raises(ModelNotFound) as refusal:
        await catalog.find("gpt-4o")
    assert refusal.value.message == "there is no model `gpt-4o`; available models: `phi`, `zephyr`"


async def test_without_any_model_it_says_how_to_get_one(catalog):
    with pytest.raises(ModelNotFound, match="osaurusctl pull NAME") as refusal:
        await catalog.find("gpt-4o")
    assert type(refusal.value) is ModelNotFound


@pytest.mark.parametrize(
    "name", ["llama-3.2-3b-instruct", "LLAMA-3.2-3b-instruct", "mlx-community/llama-3.2-3B-Instruct-4bit"]
)
async def test_a_known_model_that_is_not_here_can_be_downloaded(catalog, name):
    with pytest.raises(ModelNotDownloaded) as refusal:
        await catalog.find(name)
    assert refusal.value.param == "model"
    assert refusal.value.message == (
        "the model `llama-3.2-3b-instruct` is not downloaded; `osaurusctl pull llama-3.2-3b-instruct` gets it"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": config()}, "the model `m` is partial: no tokenizer"),
        (model(model_type="nonsense"), "the model `m` is unusable: mlx_lm has no architecture `nonsense`"),
    ],
)
async def test_a_model_that_cannot_be_served_says_why(catalog, hub, files, message):
    write_hub(hub, "org/m", files)
    with pytest.raises(ModelNotFound) as refusal:
        await catalog.find("m")
    assert (type(refusal.value), refusal.value.message, refusal.value.param) == (ModelNotFound, message, "model")


async def test_records_are_all_and_available_those_that_can_be_served(catalog, hub):
    write_hub(hub, "org/whole", model())
    write_hub(hub, "org/half", {"config.json": config()})
    assert [record.name for record in await catalog.records()] == ["half", "whole"]
    assert [record.name for record in await catalog.available()] == ["whole"]


async def test_callers_at_the_same_time_share_one_scan(catalog, hub, scans):
    write_hub(hub, "org/m", model())
    found = await asyncio.gather(*[catalog.records() for _ in range(5)], *[catalog.find("m") for _ in range(5)])
    assert len(scans) == 1
    assert all(records == found[0] for records in found[:5])
    assert all(record == found[0][0] for record in found[5:])


async def test_what_the_last_scan_found_serves_for_a_while(catalog, hub, scans):
    write_hub(hub, "org/m", model())
    for _ in range(3):
        await catalog.find("m")
        await catalog.records()
    assert len(scans) == 1


async def test_what_is_too_old_is_looked_at_again(catalog, hub, scans, monkeypatch):
    write_hub(hub, "org/m", model())
    await catalog.records()
    shutil.rmtree(repo_folder(hub, "org/m"))
    monkeypatch.setattr(module, "MAX_AGE_SECONDS", -1.0)
    assert await catalog.records() == []
    assert len(scans) == 2


async def test_a_new_model_is_seen_as_soon_as_somebody_asks_for_it(catalog, hub, scans):
    assert await catalog.records() == []
    write_hub(hub, "org/new", model())
    assert (await catalog.find("new")).repo == "org/new"
    assert len(scans) == 2


async def test_a_refresh_looks_at_once(catalog, hub, scans):
    await catalog.records()
    write_hub(hub, "org/new", model())
    await catalog.refresh()
    assert [record.state for record in await catalog.records()] == [ModelState.AVAILABLE]
    assert len(scans) == 2


async def test_a_caller_that_gives_up_leaves_the_scan_to_the_others(catalog, hub, monkeypatch):
    write_hub(hub, "org/m", model())
    scan = HeldScan(monkeypatch)
    impatient = asyncio.create_task(catalog.records())
    patient = asyncio.create_task(catalog.records())
    await scan.looked.wait()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    scan.go_on.set()
    assert [record.name for record in await patient] == ["m"]
    assert scan.count == 1


async def test_the_event_loop_goes_on_during_a_scan(catalog, monkeypatch):
    scan = HeldScan(monkeypatch)
    looking = asyncio.create_task(catalog.refresh())
    await scan.looked.wait()
    assert not looking.done()
    scan.go_on.set()
    await looking


async def test_a_root_that_cannot_be_read_is_reported_and_hides_no_other(catalog, models, hub, monkeypatch):
    write(models / "mine", model())
    real = Scanner.scan

    def fail(scanner):
        if scanner.root.source == "hub":
            raise PermissionError(1, "Operation not permitted")
        return real(scanner)

    with monkeypatch.context() as broken:
        broken.setattr(Scanner, "scan", fail)
        assert [record.name for record in await catalog.records()] == ["mine"]
        assert catalog.faults == [f"the models folder {hub} cannot be read: Operation not permitted"]
    write_hub(hub, "org/m", model())
    assert (await catalog.find("m")).name == "m"
    assert catalog.faults == []


async def test_a_root_that_hangs_is_reported_and_holds_nobody_up(catalog, models, hub, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.05)
    write(models / "mine", model())
    scan = HeldScan(monkeypatch)
    assert [record.name for record in await catalog.records()] == ["mine"]
    assert catalog.faults == [f"the models folder {hub} does not answer"]
    # Nobody waits for it a second time, and it is not asked again while it hangs.
    await catalog.refresh()
    assert scan.count == 1
    scan.go_on.set()
    await asyncio.to_thread(settled, catalog)
    await catalog.refresh()
    assert catalog.faults == []


def settled(catalog):
    """Wait for the thread that hung."""
    for thread in threading.enumerate():
        if thread.name.startswith("scan "):
            thread.join(30)


async def test_a_model_keeps_its_name_while_its_root_does_not_answer(models, hub, monkeypatch):
    write_hub(hub, "one/m", model())
    assert [record.name for record in await make_catalog(models, hub).records()] == ["m"]
    real = Scanner.scan

    def fail(scanner):
        if scanner.root.source == "hub":
            raise OSError("gone")
        return real(scanner)

    with monkeypatch.context() as broken:
        broken.setattr(Scanner, "scan", fail)
        write(models / "other", model())
        await make_catalog(models, hub).records()
    write_hub(hub, "two/m", model())
    records = await make_catalog(models, hub).records()
    assert {record.repo: record.name for record in records} == {"one/m": "m", "two/m": "two/m", "other": "other"}


async def test_a_name_is_free_again_when_its_model_is_gone(models, hub):
    write_hub(hub, "one/m", model())
    await make_catalog(models, hub).records()
    shutil.rmtree(repo_folder(hub, "one/m"))
    await make_catalog(models, hub).records()
    write_hub(hub, "two/m", model())
    assert [record.name for record in await make_catalog(models, hub).records()] == ["m"]


async def test_extra_roots_are_searched_at_both_depths(models, hub, tmp_path):
    extra = tmp_path / "extra"
    write(extra / "flat", model())
    write(extra / "org" / "Deep-it-4bit", model())
    write_hub(extra, "org2/cached", model())
    records = await make_catalog(models, hub, extra).records()
    assert {record.name: record.source for record in records} == {
        "flat": "extra",
        "deep-instruct": "extra",
        "cached": "extra",
    }


async def test_an_alias_finds_its_model_and_belongs_to_nobody_else(catalog, hub):
    write_hub(hub, "org/m", model())
    await catalog.records()
    catalog.registry.add_alias("mine", "org/m")
    await catalog.refresh()
    assert (await catalog.find("MINE")).aliases == ("mine",)
    write_hub(hub, "org/mine", model())
    await catalog.refresh()
    assert (await catalog.find("org/mine")).name == "org/mine"
    with pytest.raises(NameTaken):
        catalog.registry.add_alias("m", "org/mine")


async def test_200_repos_are_scanned_in_well_under_a_second(catalog, hub):
    for number in range(200):
        write_hub(hub, f"org/model-{number}", model(number=number))
    started = time.perf_counter()
    assert len(await catalog.available()) == 200
    first = time.perf_counter() - started
    again = []
    for _ in range(3):
        started = time.perf_counter()
        await catalog.refresh()
        again.append(time.perf_counter() - started)
    # Generous, for machines that are busy: it takes a tenth of that.
    assert first < 2
    assert min(again) < first
