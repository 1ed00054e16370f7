"""What is downloaded when, from which repo, and what is remembered. A script stands for the process that does it."""

import asyncio
import contextlib
import json
import sys

import pytest

from osaurusd import config
from osaurusd.downloads import hub as module
from osaurusd.downloads.manager import DEATHS, Pulls
from osaurusd.errors import InvalidRequest, ModelNotFound, PullFailed
from osaurusd.events import Bus
from osaurusd.http import errors
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullState

from .disk import make_catalog, model, write, write_hub

COMMIT = "c" * 40

SCRIPT = """
import json, socket, sys, time
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage
peer = socket.socket(fileno=int(sys.argv[2]))
options = dict(each.removeprefix("--").split("=", 1) for each in sys.argv[4:])
def send(*frames): peer.sendall(framing.encode(frames))
print(json.dumps(options), file=open({log!r}, "a"), flush=True)
{body}
"""
HANG = "send(messages.Pulling(stage=PullStage.DOWNLOADING, done=1, total=2)); peer.recv(1)"
ARRIVED = f"send(messages.Pulled(commit={COMMIT!r}, bytes=3))"
DIE = "sys.exit(3)"
REFUSE = "send(messages.HubFailure(code=ErrorCode.DISK_FULL, message='full'))"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Have processes do this; returns what they were asked."""
    log = tmp_path / "asked"
    log.touch()

    def set_body(body):
        code = SCRIPT.format(log=str(log), body=body)
        monkeypatch.setattr(module, "HUB_COMMAND", (sys.executable, "-c", code))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return set_body


@pytest.fixture
def catalog(models, hub):
    return make_catalog(models, hub)


@contextlib.asynccontextmanager
async def pulling(catalog, tmp_path, bus=None):
    pulls = Pulls(
        catalog,
        tmp_path / "state" / "pulls.json",
        options=config.Pulls,
        body=lambda error: errors.error_body(errors.known(error)),
        bus=bus,
    )
    pulls.start()
    try:
        yield pulls
    finally:
        await pulls.close()


async def end(pulls, pull):
    """The pull, once it has ended."""
    async with contextlib.aclosing(pulls.watch([pull.id])) as told:
        return [each async for each in told][-1]


@pytest.mark.parametrize(
    ("asked", "repo", "revision"),
    [
        ("llama-3.2-3b-instruct", "mlx-community/Llama-3.2-3B-Instruct-4bit", "main"),
        ("LLAMA-3.2-3b-Instruct@v2", "mlx-community/Llama-3.2-3B-Instruct-4bit", "v2"),
        ("MLX-community/llama-3.2-3b-instruct-4bit", "mlx-community/Llama-3.2-3B-Instruct-4bit", "main"),
        ("org/Any.Model_1@refs/pr/1", "org/Any.Model_1", "refs/pr/1"),
        ("here", "org/here", "main"),
        ("mine", "org/here", "main"),
    ],
)
async def test_a_name_means_a_repo(script, catalog, hub, tmp_path, asked, repo, revision):
    script(HANG)
    write_hub(hub, "org/here", model())
    catalog.registry.add_alias("mine", "org/here")
    async with pulling(catalog, tmp_path) as pulls:
        pull = await pulls.add(asked, None)

        assert (repo, revision) == (pull.repo, pull.revision)


@pytest.mark.parametrize(
    "asked", ["org/../x", "org/a--b", "org/", "/etc/passwd", "a/b/c", "org/x@", "org/x@../y", "org/x@-y"]
)
async def test_what_cannot_be_a_repo_is_refused(script, catalog, tmp_path, asked):
    asked_for = script(HANG)
    async with pulling(catalog, tmp_path) as pulls:
        with pytest.raises(InvalidRequest, match="model"):
            await pulls.add(asked, None)
    assert [] == asked_for()


async def test_an_unknown_name_says_where_to_look_and_an_imported_model_is_not_pulled(catalog, models, tmp_path):
    write(models / "mine", model())
    async with pulling(catalog, tmp_path) as pulls:
        with pytest.raises(ModelNotFound, match=r"did you mean `llama-3\.2-3b-instruct`"):
            await pulls.add("lama-3.2-3b-instruct", None)
        with pytest.raises(InvalidRequest, match="did not come from the hub"):
            await pulls.add("mine", None)


async def test_a_pull_is_done_once_the_catalog_has_the_model(script, catalog, hub, tmp_path):
    script(ARRIVED)
    write_hub(hub, "org/Here-4bit", model())
    async with pulling(catalog, tmp_path) as pulls:
        whole = await end(pulls, await pulls.add("org/here-4bit", None))
        missing = await end(pulls, await pulls.add("org/missing", None))

        assert (PullState.DONE, "org/Here-4bit", "here", COMMIT) == (whole.state, whole.repo, whole.name, whole.commit)
        assert (PullState.FAILED, "pull_failed") == (missing.state, missing.error.code)


async def test_a_failure_has_the_code_and_the_words_of_the_process(script, catalog, tmp_path):
    script(REFUSE)
    async with pulling(catalog, tmp_path) as pulls:
        pull = await end(pulls, await pulls.add("org/a", None))

        assert (PullState.FAILED, "disk_full", "full") == (pull.state, pull.error.code, pull.error.message)


async def test_a_process_that_only_dies_is_given_up(script, catalog, tmp_path, monkeypatch):
    monkeypatch.setattr("osaurusd.downloads.manager._DEATH_PAUSE_SECONDS", 0)
    asked = script(DIE)
    async with pulling(catalog, tmp_path) as pulls:
        pull = await end(pulls, await pulls.add("org/a", None))

        assert (PullState.FAILED, ErrorCode.PULL_FAILED) == (pull.state, pull.error.code)
        assert DEATHS + 1 == len(asked())


async def test_two_run_at_once_and_never_two_revisions_of_one_repo(script, catalog, tmp_path):
    script(HANG)
    async with pulling(catalog, tmp_path) as pulls:
        for name in ("org/a", "org/a@v2", "org/b", "org/c"):
            await pulls.add(name, None)

        states = {f"{pull.repo}@{pull.revision}": pull.state for pull in pulls.all()}
        assert ["org/a@main", "org/b@main"] == [key for key, state in states.items() if state is PullState.RUNNING]
        await pulls.cancel("org/a@main")
        assert PullState.RUNNING is pulls.all()[1].state


async def test_a_pull_that_is_cancelled_before_it_could_begin_makes_room(script, catalog, tmp_path):
    script(HANG)
    async with pulling(catalog, tmp_path) as pulls:
        for name in ("org/a", "org/b", "org/c"):
            await pulls.add(name, None)
            await pulls.cancel(name)
        await pulls.add("org/d", None)

        assert PullState.RUNNING is pulls.all()[-1].state


async def test_what_runs_and_waits_goes_on_with_the_next_daemon_and_the_token_is_not_kept(script, catalog, tmp_path):
    script("import os\n" + HANG)
    async with pulling(catalog, tmp_path) as pulls:
        for name in ("org/a", "org/b", "org/c"):
            await pulls.add(name, "hf_planted")
    assert "hf_planted" not in (tmp_path / "state" / "pulls.json").read_text()

    async with pulling(catalog, tmp_path) as pulls:
        states = [(pull.repo, pull.state.value) for pull in pulls.all()]
        assert [("org/a", "running"), ("org/b", "running"), ("org/c", "queued")] == states


async def test_a_pull_that_is_asked_for_again_keeps_its_id_and_goes_to_the_end(script, catalog, tmp_path):
    script(HANG)
    async with pulling(catalog, tmp_path) as pulls:
        first = await pulls.add("org/a", None)
        await pulls.add("org/b", None)
        await pulls.cancel(first.id)
        again = await pulls.add("org/a", None)

        assert (first.id, ["org/b", "org/a"]) == (again.id, [pull.repo for pull in pulls.all()])


async def test_watching_tells_each_change_until_all_have_ended(script, catalog, tmp_path):
    script(HANG)
    async with pulling(catalog, tmp_path) as pulls:
        pull = await pulls.add("org/a", None)
        told = []

        async def watch():
            async for each in pulls.watch([pull.id]):
                told.append((each.state.value, each.done))
                if each.done and each.state is PullState.RUNNING:
                    await pulls.cancel("org/a")

        await asyncio.wait_for(watch(), 30)
        assert [("running", 0), ("running", 1), ("cancelled", 1)] == told
        with pytest.raises(InvalidRequest, match=r"pulls\[0\]"):
            await anext(pulls.watch(["nosuch"]))


async def test_a_list_that_cannot_be_read_is_moved_aside(script, catalog, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "pulls.json").write_text("{garbage")
    async with pulling(catalog, tmp_path) as pulls:
        assert [] == pulls.all()
    assert "{garbage" == (tmp_path / "state" / "pulls.damaged.json").read_text()


async def test_a_search_that_dies_is_a_failure(script):
    script(DIE)
    with pytest.raises(PullFailed):
        await module.search("x", None, 1, None)


async def test_what_becomes_of_a_pull_is_told_as_events(script, catalog, tmp_path):
    script(HANG)
    bus = Bus()
    async with pulling(catalog, tmp_path, bus) as pulls:
        pull = await pulls.add("org/wanted", None)
        await pulls.cancel(pull.id)

    told = [(event.kind, event.model) for event in bus.past()]
    assert [(kind, pull.name) for kind in ("pull_queued", "pull_running", "pull_cancelled")] == told
