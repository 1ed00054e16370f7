"""Whoever runs the daemon: loads and unloads, pins, changes the configuration, looks, and kills workers."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import tomlkit

from tests.soak.admin import Admin
from tests.soak.evidence import RIGHT, WRONG, Evidence, Fault, FaultKind, Outcome
from tests.soak.models import MODELS, SURVIVOR

VICTIMS = [model for model in MODELS if model != SURVIVOR]

LOOKS = ("/metrics", "/v0/workers", "/v0/status", "/v0/models", "/v0/events", "/v0/diagnosis", "/v0/aliases", "/health")

PAUSE_SECONDS = (0.2, 2.0)


class Operator:
    """Does one chore after the other.

    Args:
        admin: of the daemon.
        pid: of the daemon.
        home: of the daemon.
        settings: the configuration that it was started with.
        rng: chooses what to do.
        evidence: is told of it.
    """

    def __init__(
        self, admin: Admin, pid: int, home: Path, settings: dict[str, Any], rng: random.Random, evidence: Evidence
    ) -> None:
        self._admin = admin
        self._pid = pid
        self._home = home
        self._settings = settings
        self._rng = rng
        self._evidence = evidence

    async def work(self, until: float) -> None:
        """Do chores until that moment."""
        while time.monotonic() < until:
            chore = self._rng.choice(_CHORES)
            self._evidence.chores[chore.__name__] += 1
            await chore(self)
            await asyncio.sleep(self._rng.uniform(*PAUSE_SECONDS))

    async def configure(self, **changed: dict[str, object]) -> None:
        """Put a configuration into force that differs from the usual one in these keys."""
        merged = {name: {**keys, **changed.get(name, {})} for name, keys in self._settings.items()}
        await asyncio.to_thread((self._home / "config.toml").write_text, tomlkit.dumps(merged))
        await self._expect("reload", "/v0/reload")

    async def kill(self) -> None:
        """Kill a worker, whatever it is doing."""
        workers = await self._admin.workers()
        killable = [model for model in VICTIMS if workers.get(model, {}).get("pid")]
        if not killable:
            return
        model = self._rng.choice(killable)
        pid = workers[model]["pid"]
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if psutil.Process(pid).ppid() == self._pid:
                self._fault(FaultKind.KILL, model).end()
                os.kill(pid, signal.SIGKILL)

    async def unload_by_force(self) -> None:
        """Unload a model, whoever uses it."""
        model = self._rng.choice(VICTIMS)
        with self._while(FaultKind.UNLOAD, model):
            await self._expect("unload", "/v0/unload", model=model, force=True)

    async def unload(self) -> None:
        """Unload a model if nobody uses it."""
        model = self._rng.choice(VICTIMS)
        await self._expect("unload", "/v0/unload", model=model, may_be="busy")

    async def load(self) -> None:
        """Load a model."""
        model = self._rng.choice(VICTIMS)
        await self._expect("load", "/v0/load", model=model)

    async def pin_for_a_while(self) -> None:
        """Keep a model from being evicted."""
        model = self._rng.choice(VICTIMS)
        with self._while(FaultKind.PIN, model):
            await self._expect("pin", "/v0/pins", model=model)
            await asyncio.sleep(self._rng.uniform(1, 4))
            await self._expect("unpin", "/v0/pins", model=model, pinned=False)

    async def rename(self) -> None:
        """Give a model another name, and take it away."""
        model = self._rng.choice(MODELS)
        await self._expect("alias", "/v0/aliases", alias="another", target=model)
        await self._expect("alias", "/v0/aliases", alias="another", target=None)

    async def reload(self) -> None:
        """Change the configuration in something that must not matter to anybody."""
        await self.configure(
            log={"level": self._rng.choice(["info", "warning", "debug"])},
            residency={"spare_seconds": self._rng.choice([0, 5])},
        )

    async def shorten_queues(self) -> None:
        """Let hardly anybody wait for a model, for a while."""
        with self._while(FaultKind.SHORT_QUEUE, None):
            await self.configure(worker={"max_waiting": 1})
            await asyncio.sleep(self._rng.uniform(1, 4))
            await self.configure()

    async def look(self) -> None:
        """Ask how things are."""
        path = self._rng.choice(LOOKS)
        await self._expect(f"look at {path}", path, method="GET")

    async def _expect(self, what: str, path: str, *, method: str = "POST", may_be: str = "", **body: object) -> None:
        """Ask, and note how it ended: well also with the error that `may_be`."""
        model = str(body.get("model") or body.get("target") or "")
        began = time.monotonic()
        status, answer = await self._admin.ask(method, path, **body)
        result, detail = RIGHT, ""
        if status != 200:
            error = answer.get("error", {}) if isinstance(answer, dict) else {}
            result, detail = error.get("code", WRONG), error.get("message", str(answer))
        if result == may_be:
            result = RIGHT
        self._evidence.outcomes.append(Outcome(f"operator: {what}", model, began, time.monotonic(), result, detail))

    def _fault(self, kind: FaultKind, model: str | None) -> Fault:
        fault = Fault(kind, model)
        self._evidence.faults.append(fault)
        return fault

    @contextlib.contextmanager
    def _while(self, kind: FaultKind, model: str | None) -> Iterator[None]:
        fault = self._fault(kind, model)
        try:
            yield
        finally:
            fault.end()


_CHORES: list[Callable[[Operator], Awaitable[None]]] = [
    *[Operator.kill] * 2,
    *[Operator.unload_by_force] * 2,
    Operator.pin_for_a_while,
    Operator.shorten_queues,
    *[Operator.unload] * 2,
    *[Operator.load] * 3,
    *[Operator.rename] * 2,
    *[Operator.reload] * 2,
    *[Operator.look] * 4,
]
