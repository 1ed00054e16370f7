"""The admin API of a soak's daemon."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from tests.soak.models import MODELS


class Admin:
    """Speaks over the Unix socket, each time on a connection of its own, so that none is left open."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def ask(self, method: str, path: str, **body: object) -> tuple[int, Any]:
        """Status and answer."""
        connector = aiohttp.UnixConnector(str(self._path), force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, headers={"Osaurus-Api": "1", "Host": "osaurusd"}) as session,
            session.request(method, f"http://osaurusd{path}", json=body if method == "POST" else None) as answer,
        ):
            kind = answer.content_type
            return answer.status, await answer.json() if kind == "application/json" else await answer.text()

    async def get(self, path: str) -> Any:
        """The answer to a GET, which must be there."""
        status, answer = await self.ask("GET", path)
        assert status == 200, answer
        return answer

    async def workers(self) -> dict[str, dict[str, Any]]:
        """The workers that there are, by model."""
        return {worker["model"]: worker for worker in await self.get("/v0/workers")}

    async def until_idle(self, seconds: float = 120.0) -> None:
        """Return once no request is under way, or after so long."""
        for _ in range(int(seconds / 0.5)):
            workers = await self.workers()
            if not any(worker["in_flight"] or worker["waiting"] for worker in workers.values()):
                return
            await asyncio.sleep(0.5)

    async def unload_all(self) -> None:
        """End every worker."""
        for model in MODELS:
            await self.ask("POST", "/v0/pins", model=model, pinned=False)
        await self.ask("POST", "/v0/unload", force=True)
