"""From an empty home to the evidence: ask alone, warm up, the storm, the calm after it."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import openai
import tomlkit
from openai import AsyncOpenAI

from tests import daemons
from tests.daemons import Daemon
from tests.soak import clients, questions, vandals, watch
from tests.soak.admin import Admin
from tests.soak.clients import Client, WrongAnswer
from tests.soak.evidence import RIGHT, WRONG, Evidence, Outcome
from tests.soak.models import MODELS, SURVIVOR
from tests.soak.operator import Operator
from tests.soak.questions import Known
from tests.soak.vandals import Address, Vandal

CLIENTS, VANDALS = 5, 3

# As many models as have room at once.
ROOM = 3.3

REQUEST_SECONDS = 300.0

SETTINGS: dict[str, Any] = {
    "server": {"max_body_bytes": 16 * 1024 * 1024},
    "log": {"level": "info"},
    "worker": {"max_waiting": 64, "prefix_cache_bytes": 4 * 1024 * 1024},
    # Nobody may run out of patience only because the machine is slow.
    "residency": {"wait_seconds": 3600, "min_residency_seconds": 3, "spare_seconds": 0},
}


@dataclass
class Soak:
    """One soak under way."""

    daemon: Daemon
    admin: Admin
    client: AsyncOpenAI
    address: Address
    operator: Operator
    evidence: Evidence
    seed: int

    def rng(self, who: str) -> random.Random:
        """What chance is for somebody: the same with every soak of this seed."""
        return random.Random(f"{self.seed} {who}")


def soak(home: Path, seconds: float, seed: int) -> Evidence:
    """Soak a daemon over an empty `home`."""
    evidence = Evidence(seed)
    say("making the models")
    subprocess.run([sys.executable, "-m", "tests.soak.folders", str(home / "models")], check=True)
    (home / "config.toml").write_text(tomlkit.dumps(SETTINGS))
    with daemons.running(home) as daemon:
        asyncio.run(_soak(daemon, home, seconds, evidence))
    evidence.log = daemon.log
    return evidence


async def _soak(daemon: Daemon, home: Path, seconds: float, evidence: Evidence) -> None:
    url = urlsplit(daemon.url)
    admin = Admin(daemon.socket)
    seed = evidence.seed
    settings = {name: dict(keys) for name, keys in SETTINGS.items()}
    operator = Operator(admin, daemon.process.pid, home, settings, random.Random(f"{seed} operator"), evidence)
    async with _client(daemon) as client:
        address = Address(url.hostname or "", url.port or 0, daemon.socket)
        soak = Soak(daemon, admin, client, address, operator, evidence, seed)
        known = await _ask_alone(soak)
        await _warm_up(soak, known)
    async with AsyncOpenAI(
        base_url=daemon.url, api_key="not-needed", max_retries=0, timeout=REQUEST_SECONDS
    ) as soak.client:
        settings["residency"]["budget_bytes"] = await _limit_memory(soak)
        await _storm(soak, known, seconds)
    await _calm_down(soak)


def _client(daemon: Daemon) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0, timeout=REQUEST_SECONDS)


async def _ask_alone(soak: Soak) -> Known:
    say("asking each question alone")
    known = await questions.ask_all_alone(soak.client, soak.rng("questions"))
    await soak.admin.until_idle()
    # The last that a worker tells of what it has reserved comes with its next pulse.
    await asyncio.sleep(2)
    soak.evidence.resting = await watch.loads(soak.admin)
    return known


async def _warm_up(soak: Soak, known: Known) -> None:
    """Everything once, so that what is made at its first use is there before it is looked at."""
    say("warming up")
    client = Client(soak.client, known, soak.rng("warm-up"))
    vandal = Vandal(soak.address, known, soak.rng("warm-up"))
    for kind in clients.KINDS:
        await _noted(soak, kind.__name__, SURVIVOR, lambda kind=kind: kind(client, SURVIVOR))
    for kind in vandals.KINDS:
        await _noted(soak, kind.__name__, SURVIVOR, lambda kind=kind: kind(vandal, SURVIVOR))
    await soak.client.close()
    await soak.admin.until_idle()
    await soak.admin.unload_all()
    soak.evidence.before = await watch.inventory(soak.daemon, soak.admin)
    soak.evidence.instances.add((await soak.admin.get("/v0/status"))["instance"])


async def _limit_memory(soak: Soak) -> int:
    """Leave room for some models, of which one is there to stay; returns the budget in bytes."""
    needed = []
    for model in MODELS:
        _, worker = await soak.admin.ask("POST", "/v0/load", model=model)
        needed.append(worker["estimated_bytes"])
        await soak.admin.ask("POST", "/v0/unload", model=model)
    budget = int(ROOM * max(needed))
    await soak.operator.configure(residency={"budget_bytes": budget})
    await soak.admin.ask("POST", "/v0/pins", model=SURVIVOR)
    _, worker = await soak.admin.ask("POST", "/v0/load", model=SURVIVOR)
    soak.evidence.survivor = worker["pid"]
    return budget


async def _storm(soak: Soak, known: Known, seconds: float) -> None:
    say(f"{CLIENTS} clients, {VANDALS} vandals and an operator for {seconds:g} s")
    until = time.monotonic() + seconds
    with watch.watching(soak.daemon, soak.evidence):
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                rng = soak.rng(f"client {number}")
                client = Client(soak.client, known, rng)
                group.create_task(_go_on(soak, until, client, clients.KINDS, rng))
            for number in range(VANDALS):
                rng = soak.rng(f"vandal {number}")
                vandal = Vandal(soak.address, known, rng)
                group.create_task(_go_on(soak, until, vandal, vandals.KINDS, rng))
            group.create_task(soak.operator.work(until))


async def _go_on(soak: Soak, until: float, who: Any, kinds: Any, rng: random.Random) -> None:
    while time.monotonic() < until:
        kind, model = rng.choice(kinds), rng.choice(MODELS)
        await _noted(soak, kind.__name__, model, lambda kind=kind, model=model: kind(who, model))


async def _noted(soak: Soak, kind: str, model: str, ask: Callable[[], Awaitable[str | None]]) -> None:
    """Ask, and note how it ended."""
    began = time.monotonic()
    detail = ""
    try:
        result = await ask() or RIGHT
    except (WrongAnswer, jsonschema.ValidationError, ValueError, IndexError) as error:
        result, detail = WRONG, f"{type(error).__name__}: {error}"
    except openai.APIError as error:
        result, detail = error.code or WRONG, f"{type(error).__name__}: {error.message}"
    except (OSError, EOFError) as error:
        result, detail = WRONG, f"{type(error).__name__}: {error}"
    soak.evidence.outcomes.append(Outcome(kind, model, began, time.monotonic(), result, detail))


async def _calm_down(soak: Soak) -> None:
    say("calming down")
    evidence, admin = soak.evidence, soak.admin
    await soak.operator.configure()
    await admin.until_idle()
    evidence.loads = await watch.settled_loads(admin, evidence.resting)
    await admin.unload_all()
    evidence.after = await watch.inventory(soak.daemon, admin, evidence.before)
    evidence.instances.add((await admin.get("/v0/status"))["instance"])


def say(what: str) -> None:
    """Tell whoever waits what is done."""
    print(what, file=sys.stderr, flush=True)
