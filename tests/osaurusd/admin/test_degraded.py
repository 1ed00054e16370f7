"""Degraded mode: the Unix socket reports why the daemon does not serve, and the daemon recovers automatically."""

import asyncio

import pytest

from osaurusd.config import Config, Server
from osaurusd.errors import ConfigError


class Reader:
    """A configuration that is invalid until `config` is set."""

    def __init__(self, config=None):
        self.config = config

    def __call__(self):
        if self.config is None:
            raise ConfigError("the configuration is invalid")
        return self.config


async def wait_for_reason(operator, text):
    """Wait until the status contains this reason, and return the status."""
    async with asyncio.timeout(30):
        while True:
            status = await operator.get("/v0/status")
            if any(text in fault for fault in status["faults"]):
                return status
            await asyncio.sleep(0.01)


async def test_available_prerequisites_start_no_server(degraded, operator):
    async with degraded(Reader(Config(server=Server(port=0)))) as task:
        assert (await asyncio.wait_for(task, 30)).sockets


async def test_the_status_has_the_reason_and_other_requests_are_rejected_with_it(degraded, operator):
    async with degraded(Reader()):
        status = await wait_for_reason(operator, "the configuration is invalid")

        assert (False, [], None) == (status["serving"], status["endpoints"], status["protection"])
        for method, path in (("GET", "/v0/models"), ("POST", "/v0/load"), ("GET", "/v1/models"), ("GET", "/nothing")):
            code, name, message = await operator.error(method, path)
            assert (503, "not_serving") == (code, name)
            assert "the configuration is invalid" in message


async def test_a_corrected_configuration_ends_degraded_mode_on_reload(degraded, operator):
    reader = Reader()
    async with degraded(reader) as task:
        await wait_for_reason(operator, "invalid")
        assert "config_error" == (await operator.error("POST", "/v0/reload"))[1]
        reader.config = Config(server=Server(port=0))
        await operator.post("/v0/reload")

        assert reader.config == (await asyncio.wait_for(task, 30)).config


async def test_a_corrected_configuration_is_noticed_without_a_reload(degraded, operator, monkeypatch):
    monkeypatch.setattr("osaurusd.admin.degraded.CONFIG_RETRY_SECONDS", 0.01)
    reader = Reader()
    async with degraded(reader) as task:
        await wait_for_reason(operator, "invalid")
        reader.config = Config(server=Server(port=0))

        assert reader.config == (await asyncio.wait_for(task, 30)).config


async def test_a_new_api_key_ends_degraded_mode(degraded, operator):
    async with degraded(Reader(Config(server=Server(port=0, require_key=True)))) as task:
        await wait_for_reason(operator, "osaurusctl key create")
        assert (await operator.post("/v0/keys", {"name": "laptop"}))["key"].startswith("sk-")

        assert (await asyncio.wait_for(task, 30)).sockets


async def test_a_port_in_use_is_reported_with_its_process(degraded, operator, used_port):
    async with degraded(Reader(Config(server=Server(host="127.0.0.1", port=used_port)))):
        status = await wait_for_reason(operator, f"port {used_port}")

        assert any("; used by " in fault for fault in status["faults"])


@pytest.mark.parametrize("path", ["/v0/shutdown"])
async def test_a_shutdown_request_ends_degraded_mode(degraded, operator, path):
    async with degraded(Reader()) as task:
        await wait_for_reason(operator, "invalid")
        await operator.post(path)

        assert await asyncio.wait_for(task, 30) is None
