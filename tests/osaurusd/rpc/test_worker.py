"""Worker processes from spawn to exit, with fake workers."""

import asyncio
import contextlib
import os
import signal
import sys

import psutil
import pytest
from msgspec.structs import replace

from osaurusd.errors import LoadFailed, ModelUnloaded, SlowClient, VersionMismatch, WorkerCrashed
from osaurusd.rpc import messages
from osaurusd.rpc.process import Launch
from osaurusd.rpc.watchdog import READ_GRACE_SECONDS
from osaurusd.rpc.worker import start
from tests.fakes import worker as fake_worker
from tests.osaurusd.pool.helpers import (
    COMMAND,
    build_request,
    collect,
    first_delta,
    generate_text,
    has_exited,
    received,
    turns,
    until,
)

UNLOADED = ModelUnloaded("unloaded by the test")
LAUNCH = Launch(command=COMMAND, stop_grace=5, hang_timeout=10)


@pytest.fixture(autouse=True)
def leak_check(processes):
    pass


class Listener:
    """Ignores requests; records the exit."""

    def __init__(self):
        self.exits = []

    def request_started(self):
        return self

    def delta_received(self, index, now):
        pass

    def completed(self, event):
        pass

    def closed(self):
        pass

    def memory_reserved(self, nbytes):
        pass

    def worker_exited(self, error):
        self.exits.append(error)


async def load(record, launch=LAUNCH, *, clock=None, listener=None):
    request = messages.Load(path=str(record.path))
    return await start(request, launch, clock or asyncio.get_running_loop(), listener or Listener())


@pytest.fixture
async def running(model, processes):
    """Starts workers; kills those that still run at the end."""
    workers = []

    async def running(behavior="echo", **options):
        workers.append(await load(model(behavior), **options))
        return workers[-1]

    yield running
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        await worker.exited


def program(tmp_path, code):
    """Build the launch of a Python program instead of a worker."""
    file = tmp_path / "program.py"
    file.write_text(code)
    return (sys.executable, str(file))


# Loading


async def test_a_loaded_worker_reports_its_model_and_serves_requests(running):
    worker = await running()

    assert fake_worker.LOADED == worker.loaded
    assert await generate_text(worker.client, "one two") == "one two "
    assert fake_worker.STATS == worker.client.stats


async def test_a_worker_is_offline_and_has_no_standard_input(tmp_path, model):
    command = program(
        tmp_path, "import os, sys; print(os.environ['HF_HUB_OFFLINE'], sys.stdin.read() == ''); sys.exit(1)"
    )

    with pytest.raises(WorkerCrashed, match=r"\n1 True$"):
        await load(model(), Launch(command=command))


async def test_a_worker_gets_no_token_and_its_output_is_redacted(tmp_path, model, monkeypatch):
    command = program(tmp_path, "import os, sys; print(os.environ.get('HF_TOKEN'), 'hf_PLANTED0123'); sys.exit(1)")
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED0123")

    with pytest.raises(WorkerCrashed, match=r"\nNone hf_\[redacted\]$"):
        await load(model(), Launch(command=command))


async def test_the_preloaded_library_precedes_inherited_ones(tmp_path, model, monkeypatch):
    command = program(tmp_path, "import os, sys; print('preload', os.environ.get('LD_PRELOAD')); sys.exit(1)")
    # The loader warns about files that do not exist, and continues.
    ours, theirs = tmp_path / "ours.so", tmp_path / "theirs.so"

    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(WorkerCrashed, match=f"preload {ours}$"):
        await load(model(), Launch(command=command, preload=ours))
    monkeypatch.setenv("LD_PRELOAD", str(theirs))
    with pytest.raises(WorkerCrashed, match=f"preload {ours}:{theirs}$"):
        await load(model(), Launch(command=command, preload=ours))


async def test_the_processor_type_of_openblas_can_be_overridden(tmp_path, model, monkeypatch):
    command = program(tmp_path, "import os, sys; print('core', os.environ.get('OPENBLAS_CORETYPE')); sys.exit(1)")
    launch = Launch(command=command, preload=tmp_path / "libopenblas.so", blas_core="Haswell")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    with pytest.raises(WorkerCrashed, match=r"core Haswell$"):
        await load(model(), launch)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    with pytest.raises(WorkerCrashed, match=r"core Zen$"):
        await load(model(), launch)


async def test_a_missing_command_is_a_failed_load(model):
    with pytest.raises(LoadFailed, match="cannot start a worker process"):
        await load(model(), Launch(command=("/nonexistent/python",)))


async def test_a_model_that_cannot_be_loaded_is_a_failed_load_with_the_reason(model):
    with pytest.raises(LoadFailed, match="cannot be loaded: the weights are missing"):
        await load(model("fail_load"))


async def test_a_crash_while_loading_carries_exit_code_and_output(model):
    with pytest.raises(WorkerCrashed, match=r"\(exit code 3\)") as caught:
        await load(model("crash_on_load"))

    assert caught.value.message.splitlines()[-1] == "cannot allocate the weights"


async def test_a_crash_before_hello_carries_exit_code_and_output(model, monkeypatch):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "die_at_once")

    with pytest.raises(WorkerCrashed, match=r"\(exit code 3\)") as caught:
        await load(model())

    assert caught.value.message.splitlines()[-1] == "library not found"


async def test_a_worker_of_another_version_is_rejected(model, monkeypatch):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "wrong_version")

    with pytest.raises(VersionMismatch, match=r"version 0\.0\.0 is installed; restart"):
        await load(model())


async def test_invalid_data_instead_of_hello_is_a_crash(model, monkeypatch, processes):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "garbage")

    with pytest.raises(WorkerCrashed, match="invalid data"):
        await load(model())

    assert processes.children() == []


async def test_invalid_data_instead_of_loaded_is_a_crash(model, processes):
    with pytest.raises(WorkerCrashed, match="invalid data"):
        await load(model("garbage_on_load"))

    assert processes.children() == []


async def test_a_load_that_exceeds_its_timeout_is_stopped(model, monkeypatch, processes):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "silent")

    with pytest.raises(LoadFailed, match=r"longer than 0\.5 s \(`worker.load_timeout_seconds`\)"):
        await load(model(), Launch(command=COMMAND, load_timeout=0.5))

    assert processes.children() == []


async def test_a_load_without_progress_is_stopped(model, gate, clock, processes):
    loading = asyncio.create_task(load(model("slow_ready"), clock=clock))
    await gate.arrived.wait()

    clock.advance(10 + READ_GRACE_SECONDS)

    with pytest.raises(WorkerCrashed, match="no progress for 10 s while loading"):
        await loading
    assert processes.children() == []


async def test_a_worker_that_closes_its_end_but_stays_alive_is_killed(model, clock, processes):
    launch = replace(LAUNCH, signal_meanings={signal.SIGKILL: "it was too slow"})
    loading = asyncio.create_task(load(model("close_on_load"), launch, clock=clock))
    await until((model("close_on_load").path / "closed").exists)
    await until(lambda: len(clock.timers) == 1 and clock.timers[0] == clock.now + 5)

    clock.advance(5)

    with pytest.raises(WorkerCrashed, match="SIGKILL: it was too slow"):
        await loading
    assert processes.children() == []


async def test_cancelling_a_load_stops_the_process(model, gate, processes):
    loading = asyncio.create_task(load(model("slow_ready")))
    await gate.arrived.wait()

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    assert processes.children() == []


@pytest.mark.parametrize("iterations", range(8))
async def test_cancelling_a_load_early_leaks_nothing(model, monkeypatch, iterations):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "silent")
    loading = asyncio.create_task(load(model()))
    await turns(iterations)

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading


async def test_cancelling_a_load_of_a_worker_that_closed_its_end_stops_the_process(model, clock, processes):
    loading = asyncio.create_task(load(model("close_on_load"), clock=clock))
    child = await processes.wait_for_child()
    await until((model("close_on_load").path / "closed").exists)
    await until(lambda: clock.timers == [clock.now + 5])

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    try:
        assert processes.children() == []
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


# Serving


async def test_requests_run_concurrently(running):
    worker = await running()
    stalled = worker.client.generate(build_request("stall"))
    await first_delta(stalled)

    assert await generate_text(worker.client, "a b c") == "a b c "

    await stalled.aclose()


async def test_closing_the_iterator_cancels_the_request_in_the_worker(running, model):
    worker = await running()
    stalled = worker.client.generate(build_request("stall"))
    await first_delta(stalled)

    await stalled.aclose()

    await generate_text(worker.client)
    assert received(model()) == ["load", "generate", "cancel", "generate"]


async def test_a_flood_that_is_not_read_does_not_delay_other_requests(running):
    worker = await running()
    flood = worker.client.generate(build_request("flood"))
    await first_delta(flood)

    assert await generate_text(worker.client, "a b c") == "a b c "
    with pytest.raises(SlowClient):
        await collect(flood)


async def test_a_crash_fails_running_requests_with_exit_code_and_output(running):
    worker = await running()
    stalled = asyncio.create_task(generate_text(worker.client, "stall"))

    with pytest.raises(WorkerCrashed, match=r"\(exit code 7\)") as caught:
        await generate_text(worker.client, "crash")

    assert caught.value.message.splitlines()[-1] == "the GPU caught fire"
    with pytest.raises(WorkerCrashed, match="the GPU caught fire"):
        await stalled


async def test_the_listener_is_notified_of_the_exit_before_requests_fail(running):
    class Recorder(Listener):
        def worker_exited(self, error):
            self.exits.append((error, generating.done()))

    recorder = Recorder()
    worker = await running(listener=recorder)
    generating = asyncio.create_task(generate_text(worker.client, "crash"))

    error = await worker.exited

    assert [(error, False)] == recorder.exits
    with pytest.raises(WorkerCrashed):
        await generating


async def test_a_killed_worker_fails_running_requests_with_the_signal(running):
    worker = await running()
    stalled = worker.client.generate(build_request("stall"))
    await first_delta(stalled)

    os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        await anext(stalled)


async def test_invalid_data_is_a_crash_and_stops_the_process(running):
    worker = await running()

    with pytest.raises(WorkerCrashed, match="invalid data"):
        await generate_text(worker.client, "garbage")

    assert isinstance(await worker.exited, WorkerCrashed)
    assert has_exited(worker.pid)


async def test_a_worker_without_progress_on_its_requests_is_killed(running, clock):
    worker = await running(clock=clock)
    stalled = worker.client.generate(build_request("stall"))
    await first_delta(stalled)

    clock.advance(10 + READ_GRACE_SECONDS)

    with pytest.raises(WorkerCrashed, match="no progress for 10 s on its requests"):
        await anext(stalled)
    assert has_exited(worker.pid)


async def test_a_suspended_worker_is_killed_at_its_next_request(running, clock):
    worker = await running(clock=clock)
    os.kill(worker.pid, signal.SIGSTOP)
    generating = asyncio.create_task(generate_text(worker.client))
    await turns()

    clock.advance(10 + READ_GRACE_SECONDS)

    with pytest.raises(WorkerCrashed, match="no progress"):
        await generating


async def test_pulses_keep_a_slow_worker_alive(running, clock):
    worker = await running("slow_load", clock=clock)
    slow = worker.client.generate(build_request("slow"))
    await first_delta(slow)
    clock.advance(9.9)

    # Its pulses arrive before it completes; each restarts the limit.
    assert await collect(slow)
    assert await generate_text(worker.client, "a b") == "a b "


# Stopping


async def test_stopping_returns_after_the_exit(running):
    worker = await running()

    await worker.stop(UNLOADED)

    assert has_exited(worker.pid)
    assert UNLOADED is await worker.exited


async def test_stopping_requests_a_shutdown_first(running, model):
    worker = await running()

    await worker.stop(UNLOADED)

    assert received(model()) == ["load", "shutdown"]


async def test_stopping_fails_running_requests_with_the_reason(running):
    worker = await running()
    stalled = worker.client.generate(build_request("stall"))
    await first_delta(stalled)

    await worker.stop(UNLOADED)

    with pytest.raises(ModelUnloaded) as caught:
        await anext(stalled)
    assert UNLOADED.message == caught.value.message


async def test_a_worker_that_ignores_the_shutdown_request_gets_sigterm(running, clock):
    worker = await running("ignore_shutdown", clock=clock)
    stopping = asyncio.create_task(worker.stop(UNLOADED))
    await turns()

    clock.advance(5)
    await stopping

    assert has_exited(worker.pid)
    assert UNLOADED is await worker.exited


async def test_a_worker_that_ignores_sigterm_gets_sigkill(running, model, clock):
    worker = await running("hang_on_stop", clock=clock)
    stalled = worker.client.generate(build_request("stall"))
    await first_delta(stalled)
    stopping = asyncio.create_task(worker.stop(UNLOADED))
    await until(lambda: "shutdown" in received(model("hang_on_stop")))

    clock.advance(5)
    await turns()
    assert not stopping.done()
    clock.advance(5)
    await stopping

    assert received(model("hang_on_stop")) == ["load", "generate", "shutdown"]
    assert has_exited(worker.pid)
    with pytest.raises(ModelUnloaded):
        await anext(stalled)


async def test_stopping_an_exited_worker_returns_at_once(running):
    worker = await running()
    os.kill(worker.pid, signal.SIGKILL)
    await worker.exited

    await worker.stop(UNLOADED)


async def test_a_grandchild_that_keeps_the_output_open_does_not_delay_the_exit(running, model):
    worker = await running("leave_child")

    try:
        async with asyncio.timeout(60):
            await worker.stop(UNLOADED)
        assert has_exited(worker.pid)
    finally:
        os.kill(int((model("leave_child").path / "child").read_text()), signal.SIGKILL)
