"""Finding models by name, scanning, and roots that fail or hang."""

import asyncio
import contextlib
import errno
import shutil
import threading

import pytest

from osaurusd.errors import ModelNotDownloaded, ModelNotFound, NameTaken
from osaurusd.models import catalog as catalog_module
from osaurusd.models import safetensors
from osaurusd.models.catalog import NEW_MODEL_SECONDS
from osaurusd.models.scan import SCAN_TIMEOUT_SECONDS, Scanner
from osaurusd.wire.admin import Availability
from tests.osaurusd.pool.helpers import turns

from .disk import config, make_catalog, model, repo_folder, write, write_hub


@pytest.fixture(autouse=True)
def fresh_scans(monkeypatch):
    """Let the result of a scan expire only if a test wants that."""
    monkeypatch.setattr(catalog_module, "MAX_AGE_SECONDS", 3600)


@pytest.fixture
def catalog(models, hub):
    return make_catalog(models, hub)


@pytest.fixture
def hub_scans(monkeypatch):
    """A list that gets an entry for each scan of the Hugging Face cache."""
    scans = []
    real_scan = Scanner.scan

    def counted_scan(scanner):
        if scanner.root.source == "hub":
            scans.append(scanner.root)
        return real_scan(scanner)

    monkeypatch.setattr(Scanner, "scan", counted_scan)
    return scans


@pytest.fixture
def break_hub(monkeypatch):
    """A context manager during which the Hugging Face cache cannot be read."""
    real_scan = Scanner.scan

    def failing_scan(scanner):
        if scanner.root.source == "hub":
            raise PermissionError(1, "Operation not permitted")
        return real_scan(scanner)

    @contextlib.contextmanager
    def broken():
        with monkeypatch.context() as patch:
            patch.setattr(Scanner, "scan", failing_scan)
            yield

    return broken


class BlockedScan:
    """Blocks each scan of the Hugging Face cache between reading the disk and returning the result."""

    def __init__(self, monkeypatch):
        self.count = 0
        self.has_read = asyncio.Event()
        self.release = threading.Event()
        loop = asyncio.get_running_loop()
        real_scan = Scanner.scan

        def blocked_scan(scanner):
            records = real_scan(scanner)
            if scanner.root.source == "hub":
                self.count += 1
                loop.call_soon_threadsafe(self.has_read.set)
                assert self.release.wait(30)
            return records

        monkeypatch.setattr(Scanner, "scan", blocked_scan)


async def end_of_scan(root):
    """Wait until a running scan of this root has ended."""
    for thread in threading.enumerate():
        if thread.name == f"scan {root}":
            await asyncio.to_thread(thread.join, 60)


@pytest.mark.parametrize(
    "name",
    [
        "gemma-2-2b-instruct",
        "Gemma-2-2B-Instruct",
        "mlx-community/gemma-2-2b-it-4bit",
        "MLX-Community/Gemma-2-2b-IT-4bit",
    ],
)
async def test_model_is_found_by_name_and_repository_ignoring_case(catalog, hub, name):
    snapshot = write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", model())

    assert (await catalog.find(name)).path == snapshot


async def test_imported_model_is_found_by_its_name(catalog, models):
    write(models / "mine", model())

    assert (await catalog.find("MINE")).path == models / "mine"


async def test_models_with_the_same_preferred_name_are_both_found_by_repository(catalog, hub):
    snapshots = {repo: write_hub(hub, repo, model()) for repo in ("one/m", "two/m")}

    assert {repo: (await catalog.find(repo)).path for repo in snapshots} == snapshots
    assert {(await catalog.find(record.name)).path for record in await catalog.records()} == set(snapshots.values())


@pytest.mark.parametrize("name", ["", "m/", "org", "org/m-4bit", "mm", " m", "m ", "../m"])
async def test_other_names_are_not_found(catalog, hub, name):
    write_hub(hub, "org/m", model())

    with pytest.raises(ModelNotFound) as failure:
        await catalog.find(name)
    assert failure.value.location == ("model",)
    assert f'model "{name}" does not exist' in failure.value.message


async def test_similar_names_are_suggested(catalog, hub):
    for repo in ("mlx-community/Llama-3.2-1B-Instruct-4bit", "org/zephyr"):
        write_hub(hub, repo, model())

    with pytest.raises(ModelNotFound) as failure:
        await catalog.find("llama-3.2-1b")
    assert failure.value.message == 'model "llama-3.2-1b" does not exist; did you mean "llama-3.2-1b-instruct"?'


async def test_only_available_models_are_suggested(catalog, hub):
    write_hub(hub, "org/zephyr-1", {"config.json": config()})
    write_hub(hub, "org/zephyr-2", model())

    with pytest.raises(ModelNotFound) as failure:
        await catalog.find("zephyr")
    assert failure.value.message.endswith('did you mean "zephyr-2"?')


async def test_all_models_are_listed_if_no_name_is_similar(catalog, hub):
    for repo in ("org/zephyr", "org/phi"):
        write_hub(hub, repo, model())

    with pytest.raises(ModelNotFound) as failure:
        await catalog.find("gpt-4o")
    assert failure.value.message == 'model "gpt-4o" does not exist; available models: "phi", "zephyr"'


async def test_error_explains_how_to_get_the_first_model(catalog):
    with pytest.raises(ModelNotFound, match="osaurusctl pull NAME") as failure:
        await catalog.find("gpt-4o")
    assert type(failure.value) is ModelNotFound


@pytest.mark.parametrize(
    "name", ["llama-3.2-3b-instruct", "LLAMA-3.2-3b-instruct", "mlx-community/llama-3.2-3B-Instruct-4bit"]
)
async def test_published_model_that_is_not_on_disk_can_be_downloaded(catalog, name):
    with pytest.raises(ModelNotDownloaded) as failure:
        await catalog.find(name)
    assert failure.value.location == ("model",)
    assert failure.value.message == (
        'model "llama-3.2-3b-instruct" is not downloaded; run "osaurusctl pull llama-3.2-3b-instruct"'
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": config()}, 'model "m" is partial: the tokenizer is missing'),
        (
            model(model_type="nonsense"),
            'model "m" is unusable: mlx_lm does not support the architecture `nonsense`',
        ),
    ],
)
async def test_error_states_why_a_model_cannot_be_served(catalog, hub, files, message):
    write_hub(hub, "org/m", files)

    with pytest.raises(ModelNotFound) as failure:
        await catalog.find("m")
    assert (type(failure.value), failure.value.message) == (ModelNotFound, message)


async def test_records_include_models_that_are_not_available(catalog, hub):
    write_hub(hub, "org/whole", model())
    write_hub(hub, "org/half", {"config.json": config()})

    assert [record.name for record in await catalog.records()] == ["half", "whole"]
    assert [record.name for record in await catalog.available()] == ["whole"]


async def test_concurrent_callers_share_one_scan(catalog, hub, hub_scans):
    write_hub(hub, "org/m", model())
    results = await asyncio.gather(*[catalog.records() for _ in range(5)], *[catalog.find("m") for _ in range(5)])

    assert len(hub_scans) == 1
    assert results == [results[0]] * 5 + [results[0][0]] * 5


async def test_result_of_a_scan_is_reused(catalog, hub, hub_scans):
    write_hub(hub, "org/m", model())
    for _ in range(3):
        await catalog.find("m")
        await catalog.records()

    assert len(hub_scans) == 1


async def test_result_of_a_scan_expires(catalog, hub, hub_scans, monkeypatch):
    write_hub(hub, "org/m", model())
    await catalog.records()
    shutil.rmtree(repo_folder(hub, "org/m"))
    monkeypatch.setattr(catalog_module, "MAX_AGE_SECONDS", -1.0)

    assert await catalog.records() == []
    assert len(hub_scans) == 2


async def test_new_model_is_found_immediately(catalog, hub, hub_scans):
    assert await catalog.records() == []
    write_hub(hub, "org/new", model())

    assert (await catalog.find("new")).repo == "org/new"
    assert len(hub_scans) == 2


async def test_refresh_scans_immediately(catalog, hub, hub_scans):
    await catalog.records()
    write_hub(hub, "org/new", model())
    await catalog.refresh()

    assert [record.state for record in await catalog.records()] == [Availability.AVAILABLE]
    assert len(hub_scans) == 2


async def test_scan_continues_if_one_of_its_callers_is_cancelled(catalog, hub, monkeypatch):
    write_hub(hub, "org/m", model())
    scan = BlockedScan(monkeypatch)
    cancelled = asyncio.create_task(catalog.records())
    waiting = asyncio.create_task(catalog.records())
    await scan.has_read.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    scan.release.set()

    assert [record.name for record in await waiting] == ["m"]
    assert scan.count == 1


async def test_scan_does_not_block_the_event_loop(catalog, monkeypatch):
    scan = BlockedScan(monkeypatch)
    refreshing = asyncio.create_task(catalog.refresh())
    await scan.has_read.wait()
    assert not refreshing.done()

    scan.release.set()
    await refreshing


async def test_unreadable_root_is_reported_and_does_not_hide_other_roots(catalog, models, hub, break_hub):
    write(models / "mine", model())
    with break_hub():
        assert [record.name for record in await catalog.records()] == ["mine"]
        assert catalog.faults == [f"the models folder {hub} cannot be read: Operation not permitted"]

    write_hub(hub, "org/m", model())
    assert (await catalog.find("m")).name == "m"
    assert catalog.faults == []


async def test_hanging_root_is_reported_and_delays_callers_only_once(catalog, models, hub, monkeypatch, loop_clock):
    write(models / "mine", model())
    await catalog.refresh()
    scan = BlockedScan(monkeypatch)
    refreshing = asyncio.create_task(catalog.refresh())
    await scan.has_read.wait()
    await end_of_scan(models)
    while not refreshing.done():
        loop_clock.advance(SCAN_TIMEOUT_SECONDS)
        await asyncio.sleep(0)
    assert [record.name for record in await catalog.records()] == ["mine"]
    assert f"the models folder {hub} does not respond" in catalog.faults

    # This does not wait for the running scan, and starts no other.
    await catalog.refresh()
    assert scan.count == 1

    scan.release.set()
    await end_of_scan(hub)
    await catalog.refresh()
    assert catalog.faults == []


async def test_scan_may_continue_after_the_daemon_was_stopped(catalog, hub, monkeypatch, loop_clock):
    write_hub(hub, "org/m", model())
    scan = BlockedScan(monkeypatch)
    refreshing = asyncio.create_task(catalog.refresh())
    await scan.has_read.wait()
    loop_clock.advance(60)
    await turns()
    scan.release.set()
    await refreshing
    assert catalog.faults == []
    assert [record.name for record in await catalog.records()] == ["m"]


async def test_model_that_was_just_added_is_found_although_its_root_responds_late(
    catalog, hub, monkeypatch, loop_clock
):
    scan = BlockedScan(monkeypatch)
    refreshing = asyncio.create_task(catalog.refresh())
    await scan.has_read.wait()
    while not refreshing.done():
        loop_clock.advance(SCAN_TIMEOUT_SECONDS)
        await asyncio.sleep(0)
    # The running scan has missed this one.
    write_hub(hub, "org/m", model())
    finding = asyncio.create_task(catalog.find_new(hub, lambda record: record.repo == "org/m"))
    await turns()
    assert not finding.done()
    scan.release.set()
    record = await finding
    assert record is not None
    assert record.name == "m"


async def test_search_for_a_model_that_was_just_added_ends_if_its_root_hangs(catalog, hub, monkeypatch, loop_clock):
    scan = BlockedScan(monkeypatch)
    finding = asyncio.create_task(catalog.find_new(hub, lambda record: True))
    await scan.has_read.wait()
    while not finding.done():
        loop_clock.advance(NEW_MODEL_SECONDS)
        await asyncio.sleep(0)
    assert await finding is None
    scan.release.set()


async def test_root_that_has_timed_out_is_scanned_again(catalog, models, monkeypatch):
    """As a network volume may do for a while."""
    write(models / "mine", model())

    def fail(scanner):
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with monkeypatch.context() as patch:
        patch.setattr(Scanner, "scan", fail)
        assert await catalog.records() == []
        assert f"the models folder {models} cannot be read: Connection timed out" in catalog.faults
    await catalog.refresh()
    assert catalog.faults == []
    assert [record.name for record in await catalog.records()] == ["mine"]


async def test_name_is_kept_while_the_root_cannot_be_read(models, hub, break_hub):
    write_hub(hub, "one/m", model())
    assert [record.name for record in await make_catalog(models, hub).records()] == ["m"]
    with break_hub():
        write(models / "other", model())
        await make_catalog(models, hub).records()
    write_hub(hub, "two/m", model())

    records = await make_catalog(models, hub).records()
    assert {record.repo: record.name for record in records} == {"one/m": "m", "two/m": "two/m", "other": "other"}


async def test_name_is_released_when_the_model_is_deleted(models, hub):
    write_hub(hub, "one/m", model())
    await make_catalog(models, hub).records()
    shutil.rmtree(repo_folder(hub, "one/m"))
    await make_catalog(models, hub).records()
    write_hub(hub, "two/m", model())

    assert [record.name for record in await make_catalog(models, hub).records()] == ["m"]


async def test_extra_roots_can_be_added_and_removed(catalog, hub, tmp_path):
    write(tmp_path / "extra" / "other", model())
    write_hub(hub, "org/m", model())
    catalog.set_extra_roots([tmp_path / "extra"])
    assert [record.name for record in await catalog.records()] == ["m", "other"]

    catalog.set_extra_roots([])
    assert [record.name for record in await catalog.records()] == ["m"]


async def test_alias_finds_its_model_and_is_not_assigned_to_another(catalog, hub):
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


async def test_unchanged_models_are_not_read_again(catalog, hub, monkeypatch):
    for number in range(20):
        write_hub(hub, f"org/model-{number}", model(number=number))
    assert len(await catalog.available()) == 20
    read = []
    monkeypatch.setattr(safetensors, "read", lambda folder: read.append(folder))
    await catalog.refresh()

    assert read == []
    assert len(await catalog.available()) == 20
