"""Looking at a daemon while it works: what memory it takes, how late its event loop answers, what it has open."""

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
from tests.soak.evidence import Evidence, Inventory, Load, Sample

SAMPLE_SECONDS = 1.0
PROBE_SECONDS = 0.1

QUIET_SECONDS = 60.0
"""How long what a daemon has may take to go once it is not needed any more."""


@contextlib.contextmanager
def watching(daemon: Daemon, evidence: Evidence) -> Iterator[None]:
    """Take samples and measure while the block runs."""
    over = threading.Event()
    threads = [
        threading.Thread(target=_sample, args=(daemon.process.pid, evidence, over)),
        threading.Thread(target=_probe, args=(daemon, evidence, over)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _sample(pid: int, evidence: Evidence, over: threading.Event) -> None:
    own = psutil.Process(pid)
    while not over.wait(SAMPLE_SECONDS):
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = {}
            for child in own.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    workers[child.pid] = child.memory_info().rss
            evidence.samples.append(Sample(time.monotonic(), own.memory_info().rss, workers))


def _probe(daemon: Daemon, evidence: Evidence, over: threading.Event) -> None:
    """Time the cheapest request there is: it waits for whatever the event loop is doing."""
    with contextlib.closing(daemons.UnixConnection(daemon.socket)) as connection:
        while not over.wait(PROBE_SECONDS):
            began = time.perf_counter()
            connection.request("GET", "/health", headers={"Host": "osaurusd"})
            connection.getresponse().read()
            evidence.lags.append(time.perf_counter() - began)


async def inventory(daemon: Daemon, admin: Admin, like: Inventory | None = None) -> Inventory:
    """What the daemon has while it has nothing to do; what is closing is given the time to be `like` before."""
    until = time.monotonic() + QUIET_SECONDS
    while True:
        found = await _inventory(daemon, admin)
        settled = like is not None and found.descriptors <= like.descriptors and found.tasks <= like.tasks
        if (settled and not found.processes) or time.monotonic() > until:
            return found
        if like is None:
            await asyncio.sleep(2)
            again = await _inventory(daemon, admin)
            if again == found and not found.processes:
                return found
        await asyncio.sleep(0.5)


async def _inventory(daemon: Daemon, admin: Admin) -> Inventory:
    tasks = Counter((await admin.get("/v0/diagnosis"))["tasks"])
    return Inventory(await asyncio.to_thread(descriptors.by_kind, daemon.process.pid), tasks, _processes(daemon))


def _processes(daemon: Daemon) -> list[str]:
    """All that belong to this daemon's home, whosever children they are by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != daemon.process.pid and process.environ().get("OSAURUS_HOME") == str(daemon.home):
                found.append(" ".join(process.cmdline()))
    return found


async def loads(admin: Admin) -> list[Load]:
    """What each worker has under way."""
    workers = await admin.workers()
    return [
        Load(model, worker["in_flight"], worker["waiting"], worker["reserved_bytes"])
        for model, worker in workers.items()
        if worker["state"] == "ready"
    ]


async def settled_loads(admin: Admin, resting: list[Load]) -> list[Load]:
    """The same, once it is no more than it was before, or after some time."""
    usual = {load.model: load for load in resting}
    until = time.monotonic() + QUIET_SECONDS
    while True:
        found = await loads(admin)
        if all(load == usual.get(load.model) for load in found) or time.monotonic() > until:
            return found
        await asyncio.sleep(0.5)
