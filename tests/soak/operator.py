"""The operator: loads, unloads, pins, changes the configuration, queries the daemon, and kills workers."""

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
from tests.soak.evidence import CORRECT, WRONG, Evidence, Fault, FaultKind, Outcome
from tests.soak.models import MODELS, SURVIVOR

TARGETS = [model for model in MODELS if model != SURVIVOR]

QUERIES = (
    *("/metrics", "/health", "/v0/workers", "/v0/status", "/v0/models", "/v0/events", "/v0/diagnosis"),
    "/v0/aliases",
)

PAUSE_SECONDS = (0.2, 2.0)


class Operator:
    """Performs one random action after another.

    Args:
        admin: client of the daemon's admin API.
        pid: the daemon's process id.
        home: the daemon's home directory.
        settings: the configuration with which the daemon started.
        rng: chooses actions.
        evidence: receives faults and outcomes.
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

    async def run(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            action = self._rng.choice(ACTIONS)
            self._evidence.actions[action.__name__] += 1
            await action(self)
            await asyncio.sleep(self._rng.uniform(*PAUSE_SECONDS))

    async def configure(self, **changes: dict[str, object]) -> None:
        """Reload a configuration that differs from the initial one in these keys."""
        merged = {name: {**keys, **changes.get(name, {})} for name, keys in self._settings.items()}
        await asyncio.to_thread((self._home / "config.toml").write_text, tomlkit.dumps(merged))
        await self._request("reload", "/v0/reload")

    async def kill(self) -> None:
        """Kill a worker in any state."""
        workers = await self._admin.workers()
        candidates = [model for model in TARGETS if workers.get(model, {}).get("pid")]
        if not candidates:
            return
        model = self._rng.choice(candidates)
        pid = workers[model]["pid"]
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if psutil.Process(pid).ppid() == self._pid:
                self._add_fault(FaultKind.KILL, model).end()
                os.kill(pid, signal.SIGKILL)

    async def force_unload(self) -> None:
        """Unload a model even if it is in use."""
        model = self._rng.choice(TARGETS)
        with self._fault(FaultKind.UNLOAD, model):
            await self._request("unload", "/v0/unload", model=model, force=True)

    async def unload(self) -> None:
        """Unload a model unless it is in use."""
        model = self._rng.choice(TARGETS)
        await self._request("unload", "/v0/unload", model=model, accepted_error="busy")

    async def load(self) -> None:
        model = self._rng.choice(TARGETS)
        await self._request("load", "/v0/load", model=model)

    async def pin_temporarily(self) -> None:
        model = self._rng.choice(TARGETS)
        with self._fault(FaultKind.PIN, model):
            await self._request("pin", "/v0/pins", model=model)
            await asyncio.sleep(self._rng.uniform(1, 4))
            await self._request("unpin", "/v0/pins", model=model, pinned=False)

    async def add_and_remove_alias(self) -> None:
        model = self._rng.choice(MODELS)
        await self._request("alias", "/v0/aliases", alias="another", target=model)
        await self._request("alias", "/v0/aliases", alias="another", target=None)

    async def reload(self) -> None:
        """Change settings that do not affect requests."""
        await self.configure(
            log={"level": self._rng.choice(["info", "warning", "debug"])},
            residency={"standby_seconds": self._rng.choice([0, 5])},
        )

    async def shorten_queues(self) -> None:
        """Let only one request wait per model, temporarily."""
        with self._fault(FaultKind.SHORT_QUEUE, None):
            await self.configure(worker={"max_waiting": 1})
            await asyncio.sleep(self._rng.uniform(1, 4))
            await self.configure()

    async def query(self) -> None:
        path = self._rng.choice(QUERIES)
        await self._request(f"query {path}", path, method="GET")

    async def _request(
        self, kind: str, path: str, *, method: str = "POST", accepted_error: str = "", **body: object
    ) -> None:
        """Send an admin request and record its outcome. `accepted_error` counts as success."""
        model = str(body.get("model") or body.get("target") or "")
        started = time.monotonic()
        status, response = await self._admin.request(method, path, **body)
        result, detail = CORRECT, ""
        if status != 200:
            error = response.get("error", {}) if isinstance(response, dict) else {}
            result, detail = error.get("code", WRONG), error.get("message", str(response))
        if result == accepted_error:
            result = CORRECT
        self._evidence.outcomes.append(Outcome(f"operator: {kind}", model, started, time.monotonic(), result, detail))

    def _add_fault(self, kind: FaultKind, model: str | None) -> Fault:
        fault = Fault(kind, model)
        self._evidence.faults.append(fault)
        return fault

    @contextlib.contextmanager
    def _fault(self, kind: FaultKind, model: str | None) -> Iterator[None]:
        fault = self._add_fault(kind, model)
        try:
            yield
        finally:
            fault.end()


ACTIONS: list[Callable[[Operator], Awaitable[None]]] = [
    *[Operator.kill] * 2,
    *[Operator.force_unload] * 2,
    Operator.pin_temporarily,
    Operator.shorten_queues,
    *[Operator.unload] * 2,
    *[Operator.load] * 3,
    *[Operator.add_and_remove_alias] * 2,
    *[Operator.reload] * 2,
    *[Operator.query] * 4,
]
