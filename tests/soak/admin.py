"""A client for the admin API of the soak's daemon."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from tests.soak.models import MODELS

POLL_SECONDS = 0.5


class Admin:
    """Sends requests over the Unix socket, each on a new connection, so that none stays open."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def request(self, method: str, path: str, **body: object) -> tuple[int, Any]:
        """Return the status and the decoded response."""
        connector = aiohttp.UnixConnector(str(self._socket), force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, headers={"Osaurus-Api": "1", "Host": "osaurusd"}) as session,
            session.request(method, f"http://osaurusd{path}", json=body if method == "POST" else None) as response,
        ):
            is_json = response.content_type == "application/json"
            return response.status, await response.json() if is_json else await response.text()

    async def get(self, path: str) -> Any:
        status, body = await self.request("GET", path)
        assert status == 200, body
        return body

    async def workers(self) -> dict[str, dict[str, Any]]:
        """Return the workers by model."""
        return {worker["model"]: worker for worker in await self.get("/v0/workers")}

    async def wait_until_idle(self, seconds: float = 120.0) -> None:
        """Wait until no request is running or queued, but no longer than `seconds`."""
        for _ in range(int(seconds / POLL_SECONDS)):
            workers = await self.workers()
            if not any(worker["in_flight"] or worker["waiting"] for worker in workers.values()):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def unload_all(self) -> None:
        for model in MODELS:
            await self.request("POST", "/v0/pins", model=model, pinned=False)
        await self.request("POST", "/v0/unload", force=True)
