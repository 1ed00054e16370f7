"""The phases of a soak: create references, warm up, apply load, settle."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import openai
import tomlkit
from openai import AsyncOpenAI

from tests import daemons
from tests.daemons import Daemon
from tests.soak import clients, misbehaving, monitor, references
from tests.soak.admin import Admin
from tests.soak.clients import Client, WrongResponse
from tests.soak.command import print_progress
from tests.soak.evidence import CORRECT, WRONG, Evidence, Outcome
from tests.soak.misbehaving import Address, MisbehavingClient
from tests.soak.models import MODELS, SURVIVOR
from tests.soak.operator import Operator
from tests.soak.references import References

CLIENTS, MISBEHAVING_CLIENTS = 5, 3

# How many models fit into memory at once.
BUDGET_MODELS = 3.3

REQUEST_SECONDS = 300.0

SETTINGS: dict[str, Any] = {
    "server": {"max_body_bytes": 16 * 1024 * 1024},
    "log": {"level": "info"},
    "worker": {"max_waiting": 64, "prefix_cache_bytes": 4 * 1024 * 1024},
    # No request may time out only because the machine is slow.
    "residency": {"wait_seconds": 3600, "min_residency_seconds": 3, "standby_seconds": 0},
}

Send = Callable[[], Awaitable[str | None]]


@dataclass
class Soak:
    """A soak in progress."""

    daemon: Daemon
    admin: Admin
    address: Address
    operator: Operator
    evidence: Evidence

    def rng(self, name: str) -> random.Random:
        """Return a random generator that makes the same choices in every soak with this seed."""
        return random.Random(f"{self.evidence.seed} {name}")

    def openai_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.daemon.url, api_key="not-needed", max_retries=0, timeout=REQUEST_SECONDS)


def soak(home: Path, seconds: float, seed: int) -> Evidence:
    """Run a soak in the empty directory `home`."""
    evidence = Evidence(seed)
    print_progress("creating models")
    subprocess.run([sys.executable, "-m", "tests.soak.make_models", str(home / "models")], check=True)
    (home / "config.toml").write_text(tomlkit.dumps(SETTINGS))
    with daemons.running(home) as daemon:
        asyncio.run(run_phases(daemon, home, seconds, evidence))
    evidence.log = daemon.log
    return evidence


async def run_phases(daemon: Daemon, home: Path, seconds: float, evidence: Evidence) -> None:
    url = urlsplit(daemon.url)
    admin = Admin(daemon.socket)
    settings = {name: dict(keys) for name, keys in SETTINGS.items()}
    rng = random.Random(f"{evidence.seed} operator")
    operator = Operator(admin, daemon.process.pid, home, settings, rng, evidence)
    state = Soak(daemon, admin, Address(url.hostname or "", url.port or 0, daemon.socket), operator, evidence)

    async with state.openai_client() as client:
        known = await create_references(state, client)
        await warm_up(state, client, known)
    # All connections are closed now, so that the inventory does not contain any.
    await take_baseline(state)
    async with state.openai_client() as client:
        settings["residency"]["budget_bytes"] = await limit_memory(state)
        await apply_load(state, client, known, seconds)
    await settle(state)


async def create_references(state: Soak, client: AsyncOpenAI) -> References:
    print_progress("sending reference requests")
    known = await references.create_references(client, state.rng("references"))
    await state.admin.wait_until_idle()
    # Workers report reserved memory once a second.
    await asyncio.sleep(2)
    state.evidence.idle_loads = await monitor.read_loads(state.admin)
    return known


async def warm_up(state: Soak, client: AsyncOpenAI, known: References) -> None:
    """Send each kind of request once, so that lazily created resources exist before the inventory."""
    print_progress("warming up")
    well_behaved = Client(client, known, state.rng("warm-up"))
    misbehaved = MisbehavingClient(state.address, known, state.rng("warm-up"))
    for kind in clients.KINDS:
        await record(state, kind.__name__, SURVIVOR, partial(kind, well_behaved, SURVIVOR))
    for misbehaving_kind in misbehaving.KINDS:
        await record(state, misbehaving_kind.__name__, SURVIVOR, partial(misbehaving_kind, misbehaved, SURVIVOR))


async def take_baseline(state: Soak) -> None:
    await state.admin.wait_until_idle()
    await state.admin.unload_all()
    state.evidence.before = await monitor.take_inventory(state.daemon, state.admin)
    state.evidence.instances.add((await state.admin.get("/v0/status"))["instance"])


async def limit_memory(state: Soak) -> int:
    """Set a budget for some of the models, load the survivor, and return the budget in bytes."""
    needs = []
    for model in MODELS:
        _, worker = await state.admin.request("POST", "/v0/load", model=model)
        needs.append(worker["needs_bytes"])
        await state.admin.request("POST", "/v0/unload", model=model)
    budget = int(BUDGET_MODELS * max(needs))
    await state.operator.configure(residency={"budget_bytes": budget})
    await state.admin.request("POST", "/v0/pins", model=SURVIVOR)
    _, worker = await state.admin.request("POST", "/v0/load", model=SURVIVOR)
    state.evidence.survivor_pid = worker["pid"]
    return budget


async def apply_load(state: Soak, client: AsyncOpenAI, known: References, seconds: float) -> None:
    print_progress(
        f"running {CLIENTS} clients, {MISBEHAVING_CLIENTS} misbehaving clients and an operator for {seconds:g} s"
    )
    deadline = time.monotonic() + seconds
    with monitor.monitoring(state.daemon, state.evidence):
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                rng = state.rng(f"client {number}")
                group.create_task(send_until(state, deadline, Client(client, known, rng), clients.KINDS, rng))
            for number in range(MISBEHAVING_CLIENTS):
                rng = state.rng(f"misbehaving client {number}")
                misbehaved = MisbehavingClient(state.address, known, rng)
                group.create_task(send_until(state, deadline, misbehaved, misbehaving.KINDS, rng))
            group.create_task(state.operator.run(deadline))


async def send_until(state: Soak, deadline: float, client: Any, kinds: Any, rng: random.Random) -> None:
    while time.monotonic() < deadline:
        kind, model = rng.choice(kinds), rng.choice(MODELS)
        await record(state, kind.__name__, model, partial(kind, client, model))


async def record(state: Soak, kind: str, model: str, send: Send) -> None:
    """Send a request and record its outcome."""
    started = time.monotonic()
    detail = ""
    try:
        result = await send() or CORRECT
    except openai.APIError as error:
        result, detail = error.code or WRONG, f"{type(error).__name__}: {error.message}"
    except (WrongResponse, jsonschema.ValidationError, ValueError, IndexError, OSError, EOFError) as error:
        result, detail = WRONG, f"{type(error).__name__}: {error}"
    state.evidence.outcomes.append(Outcome(kind, model, started, time.monotonic(), result, detail))


async def settle(state: Soak) -> None:
    print_progress("waiting for the daemon to settle")
    evidence, admin = state.evidence, state.admin
    await state.operator.configure()
    await admin.wait_until_idle()
    evidence.final_loads = await monitor.read_settled_loads(admin, evidence.idle_loads)
    await admin.unload_all()
    evidence.after = await monitor.take_inventory(state.daemon, admin, evidence.before)
    evidence.instances.add((await admin.get("/v0/status"))["instance"])
