"""Status, diagnosis, reload, shutdown and the version check."""

import asyncio

import msgspec
import pytest

from osaurusd import __version__
from osaurusd.config import Config, Log, Residency, Server

pytestmark = pytest.mark.usefixtures("daemon")


async def test_the_status_describes_the_daemon(environment, operator):
    status = await operator.get("/v0/status")

    assert (True, [], [], 0) == (status["serving"], status["faults"], status["workers"], status["models_available"])
    assert __version__ == status["version"]
    assert 0 <= status["uptime_seconds"] < 60
    assert environment.info.instance == status["instance"]
    assert str(environment.paths.socket) == status["socket"]
    assert status["endpoints"][0].startswith("http://127.0.0.1:")
    assert {"exposed": False, "key_required": False, "trusts_loopback": False, "keys": 0, "tls": False} == status[
        "protection"
    ]


async def test_the_diagnosis_reports_model_folders_that_cannot_be_read(environment, operator):
    file = environment.paths.state_dir / "file"
    file.touch()
    environment.config = msgspec.convert({"server": {"port": 0}, "models": {"roots": [str(file), "/missing"]}}, Config)
    await operator.post("/v0/reload")

    diagnosis = await operator.get("/v0/diagnosis")

    stores = {store["path"]: (store["readable"], store["reason"]) for store in diagnosis["stores"]}
    assert (True, None) == stores[str(environment.paths.models_dir)]
    assert (False, "Not a directory") == stores[str(file)]
    assert (False, "does not exist") == stores["/missing"]
    assert ["/missing"] == [store["path"] for store in diagnosis["stores"] if store["missing"]]
    assert __version__ == diagnosis["installation"]["packages"]["osaurusd"]
    assert diagnosis["open_files"] > 0
    assert "Daemon.serve" in diagnosis["tasks"]


async def test_a_reload_applies_what_needs_no_restart(environment, operator):
    environment.config = Config(
        default_model="m", server=Server(port=1), residency=Residency(budget_bytes=1000), log=Log(level="debug")
    )

    reply = await operator.post("/v0/reload")

    assert {
        "applied": ["default_model", "residency.budget_bytes", "log.level"],
        "needs_restart": ["server.port"],
    } == reply
    status = await operator.get("/v0/status")
    assert ("m", 1000) == (status["default_model"], status["memory_budget_bytes"])


async def test_a_reload_that_would_lock_out_every_client_is_rejected(environment, operator):
    environment.config = Config(default_model="m", server=Server(port=0, require_key=True))

    status, code, message = await operator.error("POST", "/v0/reload")

    assert (500, "config_error") == (status, code)
    assert "`server.require_key`" in message
    assert (await operator.get("/v0/status"))["default_model"] is None


async def test_a_shutdown_request_stops_the_daemon(operator, daemon):
    assert "pid" in await operator.post("/v0/shutdown")
    await asyncio.wait_for(daemon, 30)


@pytest.mark.parametrize("version", ["0", "2", "one"])
async def test_another_api_version_is_rejected_except_for_status_and_shutdown(operator, version):
    headers = {"Osaurus-Api": version}

    status, code, message = await operator.error("GET", "/v0/models", **headers)

    assert (412, "version_mismatch") == (status, code)
    assert "version 1 of the admin API" in message
    assert 200 == (await operator.send("GET", "/v0/status", **headers))[0]
    assert 202 == (await operator.send("POST", "/v0/shutdown", {}, **headers))[0]


async def test_client_routes_need_no_api_version(operator):
    assert 200 == (await operator.send("GET", "/v1/models", **{"Osaurus-Api": "0"}))[0]


async def test_unknown_admin_paths_are_json_errors(operator):
    assert (404, "not_found") == (await operator.error("GET", "/v0/nothing"))[:2]
    assert (405, "method_not_allowed") == (await operator.error("POST", "/v0/status"))[:2]
