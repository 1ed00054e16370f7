"""Draining outlasts a restart, and status, events and metrics show it."""

import json
import time

import aiohttp

CHAT = {"model": "none", "messages": [{"role": "user", "content": "x"}]}


async def test_draining_daemon_rejects_requests_and_keeps_its_admin_api(daemon, operator):
    status = await operator.post("/v0/drain", {"draining": True})
    assert (status["draining"], status["requests"]) == (True, 0)
    assert time.time() - 60 < status["since"] <= time.time()

    assert (503, "draining") == (await operator.error("POST", "/v1/chat/completions", CHAT))[:2]
    assert (503, "draining") == (await operator.error("GET", "/health/ready"))[:2]
    assert {"status": "ok"} == await operator.get("/health")
    assert [] == (await operator.get("/v1/models"))["data"]
    assert (await operator.get("/v0/status"))["drain"]["draining"]

    assert {"draining": False, "since": None, "requests": 0} == await operator.post("/v0/drain", {"draining": False})
    assert {"status": "ok"} == await operator.get("/health/ready")
    assert (404, "model_not_found") == (await operator.error("POST", "/v1/chat/completions", CHAT))[:2]


async def test_draining_twice_changes_nothing(daemon, operator):
    first = await operator.post("/v0/drain")
    assert first == await operator.post("/v0/drain", {"draining": True})
    await operator.post("/v0/drain", {"draining": False})
    await operator.post("/v0/drain", {"draining": False})

    kinds = [event["kind"] for event in await operator.get("/v0/events")]
    assert kinds in (["draining", "drained", "drain_ended"], ["draining", "drain_ended"])


async def test_draining_is_a_metric(environment, daemon, operator):
    async def metric():
        connector = aiohttp.UnixConnector(str(environment.paths.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://osaurusd/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        return next(line for line in lines if line.startswith("osaurus_draining"))

    assert "osaurus_draining 0.0" == await metric()
    await operator.post("/v0/drain")
    assert "osaurus_draining 1.0" == await metric()


async def test_draining_is_saved(environment, daemon, operator):
    file = environment.paths.state_dir / "drain.json"
    since = (await operator.post("/v0/drain"))["since"]
    assert {"version": 1, "draining_since": since} == json.loads(file.read_text())
    await operator.post("/v0/drain", {"draining": False})
    assert json.loads(file.read_text())["draining_since"] is None


async def test_daemon_drains_although_the_disk_is_full(environment, daemon, operator):
    (environment.paths.state_dir / "drain.json").mkdir()

    assert (await operator.post("/v0/drain"))["draining"]
    assert (503, "draining") == (await operator.error("GET", "/health/ready"))[:2]
