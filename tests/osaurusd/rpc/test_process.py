import asyncio
import contextlib
import os
import signal
import sys

import psutil
import pytest

from osaurusd.errors import LoadFailed, ModelUnloaded, SlowClient, VersionMismatch, WorkerCrashed
from osaurusd.rpc import messages
from osaurusd.rpc.process import Launch, start
from tests.fakes import worker as fake_worker
from tests.osaurusd.pool.asking import COMMAND, ask, collect, is_gone, order, received, turns, until

UNLOADED = ModelUnloaded("enough")
LAUNCH = Launch(command=COMMAND, stop_grace=5)
HASTY = Launch(command=COMMAND, stop_grace=0.3)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(traces):
    pass


@pytest.fixture
async def running(model, traces):
    """Starts workers; those that are still there at the end are killed."""
    workers = []

    async def running(behaviour="echo", launch=LAUNCH):
        workers.append(await start(messages.Load(path=str(model(behaviour).path)), launch))
        return workers[-1]

    yield running
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        await worker.exited


async def load(model, behaviour, launch=LAUNCH):
    """Load, as a test that expects this to fail does."""
    await start(messages.Load(path=str(model(behaviour).path)), launch)


# Loading


async def test_a_started_worker_says_what_it_loaded_and_answers(running):
    worker = await running()

    assert fake_worker.LOADED == worker.loaded
    assert await ask(worker.client, "one two") == "one two "
    assert fake_worker.STATS == worker.client.stats


async def test_the_worker_is_offline_and_has_no_standard_input(tmp_path, model):
    program = tmp_path / "look.py"
    program.write_text("import os, sys; print(os.environ['HF_HUB_OFFLINE'], sys.stdin.read() == ''); sys.exit(1)")

    with pytest.raises(WorkerCrashed, match=r"\n1 True$"):
        await load(model, "echo", Launch(command=(sys.executable, str(program))))


async def test_the_worker_knows_no_token_and_its_last_words_tell_none(tmp_path, model, monkeypatch):
    program = tmp_path / "look.py"
    program.write_text("import os, sys; print(os.environ.get('HF_TOKEN'), 'hf_PLANTED0123'); sys.exit(1)")
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED0123")

    with pytest.raises(WorkerCrashed, match=r"\nNone hf_\[redacted\]$"):
        await load(model, "echo", Launch(command=(sys.executable, str(program))))


async def test_a_library_is_preloaded_before_those_that_are_already(tmp_path, model, monkeypatch):
    program = tmp_path / "look.py"
    program.write_text("import os, sys; print('preload', os.environ.get('LD_PRELOAD')); sys.exit(1)")
    command = (sys.executable, str(program))
    # Empty files: the loader says that it cannot use them and goes on.
    ours, theirs = tmp_path / "ours.so", tmp_path / "theirs.so"

    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(WorkerCrashed, match=f"preload {ours}$"):
        await load(model, "echo", Launch(command=command, preload=ours))
    monkeypatch.setenv("LD_PRELOAD", str(theirs))
    with pytest.raises(WorkerCrashed, match=f"preload {ours}:{theirs}$"):
        await load(model, "echo", Launch(command=command, preload=ours))


async def test_a_command_that_does_not_exist_is_a_failed_load(model):
    with pytest.raises(LoadFailed, match="no worker process could be started"):
        await load(model, "echo", Launch(command=("/nonexistent/python",)))


async def test_a_load_that_is_refused_carries_the_reason(model):
    with pytest.raises(LoadFailed, match="could not be loaded: the weights are not there"):
        await load(model, "refuse_load")


async def test_a_crash_while_loading_carries_exit_code_and_last_words(model):
    with pytest.raises(WorkerCrashed, match=r"\(exit code 3\)") as caught:
        await load(model, "crash_on_load")

    assert caught.value.message.splitlines()[-1] == "no room for the weights"


async def test_a_crash_before_hello_carries_exit_code_and_last_words(model, monkeypatch):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "die_at_once")

    with pytest.raises(WorkerCrashed, match=r"\(exit code 3\)") as caught:
        await load(model, "echo")

    assert caught.value.message.splitlines()[-1] == "no such library"


async def test_a_worker_of_another_version_is_refused(model, monkeypatch):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "wrong_version")

    with pytest.raises(VersionMismatch, match="restart"):
        await load(model, "echo")


async def test_garbage_instead_of_hello_is_a_crash(model, monkeypatch, traces):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "garbage")

    with pytest.raises(WorkerCrashed, match="garbage"):
        await load(model, "echo")

    assert traces.children() == []


async def test_garbage_instead_of_loaded_is_a_crash(model, traces):
    with pytest.raises(WorkerCrashed, match="garbage"):
        await load(model, "garbage_on_load")

    assert traces.children() == []


async def test_a_load_that_takes_too_long_is_ended(model, gate, traces):
    with pytest.raises(LoadFailed, match="longer than 1 s"):
        await load(model, "slow_ready", Launch(command=COMMAND, load_timeout=1))

    assert traces.children() == []


async def test_a_worker_that_says_nothing_is_ended(model, monkeypatch, traces):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "silent")

    with pytest.raises(LoadFailed, match=r"longer than 0\.5 s"):
        await load(model, "echo", Launch(command=COMMAND, load_timeout=0.5))

    assert traces.children() == []


async def test_a_worker_that_closes_its_end_and_lives_on_is_ended(model, traces):
    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        await load(model, "close_on_load", HASTY)

    assert traces.children() == []


async def test_a_load_that_is_cancelled_ends_the_process(model, gate, traces):
    loading = asyncio.create_task(load(model, "slow_ready"))
    await gate.arrived.wait()

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    assert traces.children() == []


@pytest.mark.parametrize("late", range(8))
async def test_a_load_that_is_cancelled_early_leaves_nothing_behind(model, monkeypatch, late):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "silent")
    loading = asyncio.create_task(load(model, "echo"))
    await turns(late)

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading


async def test_a_load_that_is_cancelled_while_a_closed_worker_lives_on_ends_the_process(model, traces):
    loading = asyncio.create_task(load(model, "close_on_load"))
    child = await traces.child()
    await until((model("close_on_load").path / "closed").exists)
    await turns()  # until the end of file was noticed

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    try:
        assert traces.children() == []
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


# Running


async def test_two_requests_run_side_by_side(running):
    worker = await running()
    stalled = worker.client.generate(order("stall"))
    await anext(stalled)

    assert await ask(worker.client, "a b c") == "a b c "

    await stalled.aclose()


async def test_closing_the_iterator_reaches_the_worker_as_a_cancel(running, model):
    worker = await running()
    stalled = worker.client.generate(order("stall"))
    await anext(stalled)

    await stalled.aclose()

    await ask(worker.client)  # what the worker gets after the Cancel
    assert received(model()) == ["load", "generate", "cancel", "generate"]


async def test_a_flood_that_nobody_reads_harms_nobody_else(running):
    worker = await running()
    flood = worker.client.generate(order("flood"))
    await anext(flood)

    answer = await ask(worker.client, "a b c")

    assert answer == "a b c "
    with pytest.raises(SlowClient):
        await collect(flood)


async def test_a_crash_fails_what_is_in_flight_with_exit_code_and_last_words(running):
    worker = await running()
    stalled = asyncio.create_task(ask(worker.client, "stall"))

    with pytest.raises(WorkerCrashed, match=r"\(exit code 7\)") as caught:
        await ask(worker.client, "crash")

    assert caught.value.message.splitlines()[-1] == "the GPU caught fire"
    with pytest.raises(WorkerCrashed, match="the GPU caught fire"):
        await stalled


async def test_a_killed_worker_fails_what_is_in_flight_with_the_signal(running):
    worker = await running()
    stalled = worker.client.generate(order("stall"))
    await anext(stalled)

    os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        await anext(stalled)


async def test_garbage_in_an_answer_is_a_crash_and_ends_the_process(running):
    worker = await running()

    with pytest.raises(WorkerCrashed, match="garbage"):
        await ask(worker.client, "garbage")

    assert isinstance(await worker.exited, WorkerCrashed)
    assert is_gone(worker.pid)


async def test_the_end_is_announced_with_its_reason(running):
    worker = await running()

    os.kill(worker.pid, signal.SIGTERM)

    assert "SIGTERM" in (await worker.exited).message
    assert is_gone(worker.pid)


# Stopping


async def test_stopping_returns_once_the_process_is_gone(running):
    worker = await running()

    await worker.stop(UNLOADED)

    assert is_gone(worker.pid)
    assert UNLOADED is await worker.exited


async def test_stopping_asks_before_it_kills(running, model):
    worker = await running()

    await worker.stop(UNLOADED)

    assert received(model()) == ["load", "shutdown"]


async def test_stopping_fails_what_is_in_flight_with_the_reason(running):
    worker = await running()
    stalled = worker.client.generate(order("stall"))
    await anext(stalled)

    await worker.stop(UNLOADED)

    with pytest.raises(ModelUnloaded) as caught:
        await anext(stalled)
    assert UNLOADED is caught.value


async def test_stopping_a_worker_that_does_not_answer_ends_in_sigterm(running):
    worker = await running("deaf_on_stop", HASTY)

    await worker.stop(UNLOADED)

    assert is_gone(worker.pid)
    assert UNLOADED is await worker.exited


async def test_stopping_a_worker_that_ignores_sigterm_ends_in_sigkill(running, model):
    worker = await running("hang_on_stop", HASTY)

    await worker.stop(UNLOADED)

    assert received(model("hang_on_stop")) == ["load", "shutdown"]
    assert is_gone(worker.pid)
    assert UNLOADED is await worker.exited


async def test_stopping_a_worker_that_hangs_fails_what_is_in_flight(running):
    worker = await running("hang_on_stop", HASTY)
    stalled = worker.client.generate(order("stall"))
    await anext(stalled)

    await worker.stop(UNLOADED)

    with pytest.raises(ModelUnloaded):
        await anext(stalled)


async def test_stopping_a_worker_that_is_gone_returns_at_once(running):
    worker = await running()
    os.kill(worker.pid, signal.SIGKILL)
    await worker.exited

    await worker.stop(UNLOADED)


async def test_a_process_that_the_worker_left_behind_does_not_hold_up_its_end(running, model):
    worker = await running("have_child", HASTY)

    try:
        async with asyncio.timeout(5):
            await worker.stop(UNLOADED)
        assert is_gone(worker.pid)
    finally:
        os.kill(int((model("have_child").path / "child").read_text()), signal.SIGKILL)
