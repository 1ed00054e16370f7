"""Observation of a daemon while it works: memory, event loop lag, open descriptors, tasks and processes."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil

from tests import daemons, descriptors
from tests.daemons import Daemon
from tests.soak.admin import Admin
from tests.soak.evidence import Evidence, Inventory, Sample, WorkerLoad

SAMPLE_SECONDS = 1.0
PROBE_SECONDS = 0.1
POLL_SECONDS = 0.5

SETTLE_SECONDS = 60.0
"""How long the daemon may take to release what it no longer needs."""


@contextlib.contextmanager
def monitoring(daemon: Daemon, evidence: Evidence) -> Iterator[None]:
    """Take samples while the block runs."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=sample_memory, args=(daemon.process.pid, evidence, stop)),
        threading.Thread(target=probe_latency, args=(daemon, evidence, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def sample_memory(pid: int, evidence: Evidence, stop: threading.Event) -> None:
    process = psutil.Process(pid)
    while not stop.wait(SAMPLE_SECONDS):
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = {}
            for child in process.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    workers[child.pid] = child.memory_info().rss
            evidence.samples.append(Sample(time.monotonic(), process.memory_info().rss, workers))


def probe_latency(daemon: Daemon, evidence: Evidence, stop: threading.Event) -> None:
    """Time the cheapest request, which waits for whatever the event loop is doing."""
    with contextlib.closing(daemons.UnixConnection(daemon.socket)) as connection:
        while not stop.wait(PROBE_SECONDS):
            started = time.perf_counter()
            connection.request("GET", "/health", headers={"Host": "osaurusd"})
            connection.getresponse().read()
            evidence.latencies.append(time.perf_counter() - started)


async def take_inventory(daemon: Daemon, admin: Admin, baseline: Inventory | None = None) -> Inventory:
    """List what an idle daemon has open.

    Waits until the list does not exceed `baseline`, or without one until it does not change, but no longer than
    `SETTLE_SECONDS`.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        inventory = await list_open(daemon, admin)
        if time.monotonic() > deadline:
            return inventory
        if baseline is None:
            await asyncio.sleep(2)
            if inventory == await list_open(daemon, admin) and not inventory.processes:
                return inventory
        elif (
            inventory.descriptors <= baseline.descriptors
            and inventory.tasks <= baseline.tasks
            and not inventory.processes
        ):
            return inventory
        await asyncio.sleep(POLL_SECONDS)


async def list_open(daemon: Daemon, admin: Admin) -> Inventory:
    tasks = Counter((await admin.get("/v0/diagnosis"))["tasks"])
    return Inventory(await asyncio.to_thread(descriptors.by_kind, daemon.process.pid), tasks, list_processes(daemon))


def list_processes(daemon: Daemon) -> list[str]:
    """Return the command lines of all other processes of the daemon's home directory, including orphans."""
    command_lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != daemon.process.pid and process.environ().get("OSAURUS_HOME") == str(daemon.home):
                command_lines.append(" ".join(process.cmdline()))
    return command_lines


async def read_loads(admin: Admin) -> list[WorkerLoad]:
    workers = await admin.workers()
    return [
        WorkerLoad(model, worker["in_flight"], worker["waiting"], worker["reserved_bytes"])
        for model, worker in workers.items()
        if worker["state"] == "ready"
    ]


async def read_settled_loads(admin: Admin, baseline: list[WorkerLoad]) -> list[WorkerLoad]:
    """Wait until the loads match `baseline`, but no longer than `SETTLE_SECONDS`."""
    expected = {load.model: load for load in baseline}
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        loads = await read_loads(admin)
        if all(load == expected.get(load.model) for load in loads) or time.monotonic() > deadline:
            return loads
        await asyncio.sleep(POLL_SECONDS)
