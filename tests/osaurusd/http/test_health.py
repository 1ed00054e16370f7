"""Health checks: `/health` and `/health/live` say that the daemon runs, `/health/ready` that it accepts requests."""

import pytest

from osaurusd.config import Config
from osaurusd.errors import Draining
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.http.health import PUBLIC_PATHS, health_routes

from .serve import serving

PATHS = sorted(PUBLIC_PATHS)


@pytest.fixture
def admission():
    return Admission(Config)


@pytest.fixture
async def server(admission):
    async with serving(create_app([health_routes()], Config, admission=admission)) as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
async def test_every_check_succeeds_while_requests_are_accepted(server, path):
    response = await server.request("GET", path)
    assert (response.status, response.json) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", PATHS)
async def test_only_ready_fails_while_requests_are_rejected(server, admission, path):
    def rejection():
        return Draining("the daemon is draining")

    admission.close(rejection)
    response = await server.request("GET", path)
    if path.endswith("/ready"):
        assert (response.status, response.error["code"], response.headers["Retry-After"]) == (503, "draining", "5")
    else:
        assert response.status == 200
    admission.reopen(rejection)
    assert (await server.request("GET", path)).status == 200
