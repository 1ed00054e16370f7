"""The queue and the state of pulls, with a script instead of the download process."""

import asyncio
import contextlib
import json
import sys

import pytest

from osaurusd import config
from osaurusd.downloads import hub as hub_process
from osaurusd.downloads.manager import PullManager
from osaurusd.downloads.pulls import MAX_FINISHED
from osaurusd.errors import InvalidRequest, ModelNotFound, OsaurusError, PullFailed
from osaurusd.events import EventBus
from osaurusd.platform.power import PowerAssertion
from osaurusd.rpc import job
from osaurusd.wire.errors import ErrorBody, ErrorCode
from osaurusd.wire.pulls import PullState
from tests.osaurusd.models.disk import make_catalog, model, write, write_hub

COMMIT = "c" * 40

SCRIPT = """
import json, os, socket, sys
from osaurusd.downloads import messages
from osaurusd.rpc import framing
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage
peer = socket.socket(fileno=int(sys.argv[2]))
options = dict(each.removeprefix("--").split("=", 1) for each in sys.argv[4:])
def send(*frames): peer.sendall(framing.encode(frames))
print(json.dumps(options | {{"token": os.environ.get("HF_TOKEN")}}), file=open({log!r}, "a"), flush=True)
{body}
"""
HANG = "send(messages.Progress(stage=PullStage.DOWNLOADING, done=1, total=2)); peer.recv(1)"
FINISH = f"send(messages.Pulled(commit={COMMIT!r}, bytes=3))"
DIE = "sys.exit(3)"
FAIL = "send(messages.Failure(code=ErrorCode.DISK_FULL, message='full'))"


@pytest.fixture
def use_script(monkeypatch, tmp_path):
    """Replace the download process by a script; returns a function that returns the options of each run."""
    log = tmp_path / "runs"
    log.touch()

    def use(body):
        code = SCRIPT.format(log=str(log), body=body)
        monkeypatch.setattr(hub_process, "COMMAND", (sys.executable, "-c", code))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return use


@pytest.fixture
def catalog(models, hub):
    return make_catalog(models, hub)


def to_error_body(error):
    code = error.code if isinstance(error, OsaurusError) else ErrorCode.INTERNAL_ERROR
    return ErrorBody(code=code, message=str(error), type="error")


@contextlib.asynccontextmanager
async def running_manager(catalog, tmp_path, bus=None):
    manager = PullManager(
        catalog,
        tmp_path / "state" / "pulls.json",
        options=config.Pulls,
        error_body=to_error_body,
        bus=bus or EventBus(),
        power=PowerAssertion(),
    )
    manager.start()
    try:
        yield manager
    finally:
        await manager.close()


async def wait_finished(manager, pull):
    """Return the pull in its final state."""
    async with contextlib.aclosing(manager.watch([pull.id])) as updates:
        return [update async for update in updates][-1]


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("llama-3.2-3b-instruct", "mlx-community/Llama-3.2-3B-Instruct-4bit", "main"),
        ("LLAMA-3.2-3b-Instruct@v2", "mlx-community/Llama-3.2-3B-Instruct-4bit", "v2"),
        ("MLX-community/llama-3.2-3b-instruct-4bit", "mlx-community/Llama-3.2-3B-Instruct-4bit", "main"),
        ("org/Any.Model_1@refs/pr/1", "org/Any.Model_1", "refs/pr/1"),
        ("here", "org/here", "main"),
        ("mine", "org/here", "main"),
    ],
)
async def test_names_and_aliases_are_resolved_to_repositories(use_script, catalog, hub, tmp_path, name, repo, revision):
    use_script(HANG)
    write_hub(hub, "org/here", model())
    catalog.registry.add_alias("mine", "org/here")
    async with running_manager(catalog, tmp_path) as manager:
        pull = await manager.add(name, None)

        assert (repo, revision) == (pull.repo, pull.revision)


@pytest.mark.parametrize(
    "name", ["org/../x", "org/a--b", "org/", "/etc/passwd", "a/b/c", "org/x@", "org/x@../y", "org/x@-y"]
)
async def test_invalid_repositories_and_revisions_are_rejected(use_script, catalog, tmp_path, name):
    runs = use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        with pytest.raises(InvalidRequest, match=r"invalid (repository|revision)") as failure:
            await manager.add(name, None)
    assert ("model",) == failure.value.location
    assert [] == runs()


async def test_error_for_an_unknown_name_suggests_similar_ones(catalog, tmp_path):
    async with running_manager(catalog, tmp_path) as manager:
        with pytest.raises(ModelNotFound, match=r'did you mean "llama-3\.2-3b-instruct"'):
            await manager.add("lama-3.2-3b-instruct", None)


async def test_imported_model_cannot_be_pulled(catalog, models, tmp_path):
    write(models / "mine", model())
    async with running_manager(catalog, tmp_path) as manager:
        with pytest.raises(InvalidRequest, match="does not come from the Hugging Face Hub"):
            await manager.add("mine", None)


async def test_pull_is_done_once_the_catalog_has_the_model(use_script, catalog, hub, tmp_path):
    use_script(FINISH)
    write_hub(hub, "org/Here-4bit", model())
    async with running_manager(catalog, tmp_path) as manager:
        installed = await wait_finished(manager, await manager.add("org/here-4bit", None))
        missing = await wait_finished(manager, await manager.add("org/missing", None))

    assert PullState.DONE is installed.state
    assert ("org/Here-4bit", "here", COMMIT) == (installed.repo, installed.name, installed.commit)
    assert (PullState.FAILED, "pull_failed") == (missing.state, missing.error.code)


async def test_requested_pull_fails_soon_without_a_network(catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_process, "RESPONSE_SECONDS", 3.0)
    async with running_manager(catalog, tmp_path) as manager:
        failed = await wait_finished(manager, await manager.add("org/a", None))
    assert (PullState.FAILED, ErrorCode.PULL_FAILED) == (failed.state, failed.error.code)
    assert "check the network" in failed.error.message


async def test_hub_that_never_responds_fails_a_requested_pull_but_not_a_resumed_one(
    use_script, catalog, tmp_path, monkeypatch
):
    use_script("send(messages.Progress(stage=PullStage.RESOLVING)); peer.recv(1)")
    monkeypatch.setattr(hub_process, "RESPONSE_SECONDS", 60.0)
    async with running_manager(catalog, tmp_path) as manager:
        resumed = await manager.add("org/resumed", None)
    monkeypatch.setattr(hub_process, "RESPONSE_SECONDS", 0.5)
    async with running_manager(catalog, tmp_path) as manager:
        failed = await wait_finished(manager, await manager.add("org/a", None))
        (still_running,) = [pull for pull in manager.all() if pull.id == resumed.id]
    assert "org/a: the hub did not respond within 0.5 s" in failed.error.message
    assert PullState.RUNNING is still_running.state


async def test_start_of_the_process_does_not_count_as_waiting_for_the_hub(
    use_script, catalog, hub, tmp_path, monkeypatch
):
    monkeypatch.setattr(hub_process, "RESPONSE_SECONDS", 0.01)  # a process takes longer to start
    write_hub(hub, "org/Here-4bit", model())
    resolving = "messages.Progress(stage=PullStage.RESOLVING)"
    use_script(f"send({resolving}, messages.Pulled(commit={COMMIT!r}, bytes=3))")
    async with running_manager(catalog, tmp_path) as manager:
        pull = await wait_finished(manager, await manager.add("org/here-4bit", None))
    assert PullState.DONE is pull.state

    use_script(f"send({resolving}, messages.SearchResult(models=[]))")
    assert [] == await hub_process.search("x", "generate", None, 1, None)


async def test_pull_that_has_started_to_download_has_no_time_limit(use_script, catalog, tmp_path, monkeypatch):
    use_script(HANG)
    timeouts, create_timeout = [], asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda seconds: timeouts.append(create_timeout(seconds)) or timeouts[-1])
    async with running_manager(catalog, tmp_path) as manager:
        pull = await manager.add("org/a", None)
        async with contextlib.aclosing(manager.watch([pull.id])) as updates:
            await anext(update async for update in updates if update.done)
        assert [None] == [timeout.when() for timeout in timeouts]


async def test_failed_pull_has_the_error_of_its_process(use_script, catalog, tmp_path):
    use_script(FAIL)
    async with running_manager(catalog, tmp_path) as manager:
        pull = await wait_finished(manager, await manager.add("org/a", None))

    assert (PullState.FAILED, "disk_full", "full") == (pull.state, pull.error.code, pull.error.message)


async def test_pull_fails_if_its_process_keeps_crashing(use_script, catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "CRASH_BACKOFF_SECONDS", 0)
    runs = use_script(DIE)
    async with running_manager(catalog, tmp_path) as manager:
        pull = await wait_finished(manager, await manager.add("org/a", None))

    assert (PullState.FAILED, ErrorCode.PULL_FAILED) == (pull.state, pull.error.code)
    assert job.MAX_CRASHES + 1 == len(runs())


async def test_two_pulls_run_at_a_time_but_only_one_per_repository(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        for name in ("org/a", "org/a@v2", "org/b", "org/c"):
            await manager.add(name, None)
        running = [f"{pull.repo}@{pull.revision}" for pull in manager.all() if pull.state is PullState.RUNNING]
        assert ["org/a@main", "org/b@main"] == running

        await manager.cancel("org/a@main")
        assert PullState.RUNNING is manager.all()[1].state


async def test_pulls_that_are_cancelled_before_they_start_free_their_slots(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        for name in ("org/a", "org/b", "org/c"):
            await manager.add(name, None)
            await manager.cancel(name)
        await manager.add("org/d", None)

        assert PullState.RUNNING is manager.all()[-1].state


async def test_inactive_pull_cannot_be_cancelled(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        pull = await manager.add("org/a", None)
        await manager.cancel(pull.id)
        with pytest.raises(ModelNotFound, match='no pull of "org/a" is running or queued'):
            await manager.cancel("org/a")


async def test_active_pulls_resume_after_a_restart(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        for name in ("org/a", "org/b", "org/c"):
            await manager.add(name, None)
    async with running_manager(catalog, tmp_path) as manager:
        states = [(pull.repo, pull.state.value) for pull in manager.all()]

    assert [("org/a", "running"), ("org/b", "running"), ("org/c", "queued")] == states


async def test_token_is_passed_to_the_process_but_not_stored(use_script, catalog, tmp_path):
    runs = use_script(FAIL)
    async with running_manager(catalog, tmp_path) as manager:
        await wait_finished(manager, await manager.add("org/a", "hf_planted"))

    assert ["hf_planted"] == [run["token"] for run in runs()]
    assert "hf_planted" not in (tmp_path / "state" / "pulls.json").read_text()


async def test_repeated_pull_keeps_its_id_and_moves_to_the_end(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        first = await manager.add("org/a", None)
        await manager.add("org/b", None)
        await manager.cancel(first.id)
        again = await manager.add("org/a", None)

        assert (first.id, ["org/b", "org/a"]) == (again.id, [pull.repo for pull in manager.all()])


async def test_oldest_finished_pulls_are_dropped(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        for number in range(MAX_FINISHED + 2):
            await manager.add(f"org/m{number}", None)
            await manager.cancel(f"org/m{number}")

        assert [f"org/m{number}" for number in range(2, MAX_FINISHED + 2)] == [pull.repo for pull in manager.all()]


async def test_removed_partial_download_drops_its_pull(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        cancelled, active = await manager.add("org/a", None), await manager.add("org/b", None)
        await manager.cancel(cancelled.id)
        assert [manager.folder(active)] == manager.active_folders()
        for pull in (cancelled, active):
            await manager.forget(manager.folder(pull))

        assert [active.id] == [pull.id for pull in manager.all()]


async def test_watch_yields_each_change_until_all_pulls_have_finished(use_script, catalog, tmp_path):
    use_script(HANG)
    async with running_manager(catalog, tmp_path) as manager:
        pull = await manager.add("org/a", None)
        updates = []
        async for update in manager.watch([pull.id]):
            updates.append((update.state.value, update.done, update.total))
            if update.done and update.state is PullState.RUNNING:
                await manager.cancel("org/a")

        assert [("running", 0, 0), ("running", 1, 2), ("cancelled", 1, 2)] == updates


async def test_unknown_pull_cannot_be_watched(catalog, tmp_path):
    async with running_manager(catalog, tmp_path) as manager:
        with pytest.raises(InvalidRequest, match='pull "unknown" does not exist') as failure:
            await anext(manager.watch(["unknown"]))
    assert ("pulls", 0) == failure.value.location


async def test_damaged_state_file_is_moved_aside(catalog, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "pulls.json").write_text("{garbage")
    async with running_manager(catalog, tmp_path) as manager:
        assert [] == manager.all()
        assert "pulls.json" in manager.fault
    assert "{garbage" == (tmp_path / "state" / "pulls.damaged.json").read_text()


async def test_search_fails_if_its_process_crashes(use_script):
    use_script(DIE)
    with pytest.raises(PullFailed, match="exit code 3"):
        await hub_process.search("x", "generate", None, 1, None)


async def test_state_changes_are_published_as_events(use_script, catalog, tmp_path):
    use_script(HANG)
    bus = EventBus()
    async with running_manager(catalog, tmp_path, bus) as manager:
        pull = await manager.add("org/wanted", None)
        await manager.cancel(pull.id)

    events = [(event.kind, event.model) for event in bus.history()]
    assert [(kind, pull.name) for kind in ("pull_queued", "pull_running", "pull_cancelled")] == events
