"""Ollama's routes over one model that a fake worker runs."""

import json
from dataclasses import dataclass, field

import pytest

from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.pool.pool import Pool
from osaurusd.protocols.ollama.embeddings import Embeddings
from osaurusd.protocols.ollama.generation import Generation
from osaurusd.protocols.ollama.management import Management
from osaurusd.protocols.ollama.models import Models
from osaurusd.protocols.ollama.routes import ollama_routes
from osaurusd.wire.pulls import PullInfo, PullState
from tests.osaurusd.http.serve import LiveServer, serving
from tests.osaurusd.protocols.helpers import MODEL, REPO, running_backend


@dataclass
class FakePulls:
    """Pulls that pass through these states."""

    states: list[PullInfo] = field(default_factory=list)

    async def add(self, model, token):
        return PullInfo(id="1", repo=model, revision="main", name=model, state=PullState.QUEUED)

    async def watch(self, pull_ids):
        for state in self.states:
            yield state

    def will(self, state, **fields):
        """Add a state."""
        self.states.append(PullInfo(id="1", repo="org/new", revision="main", name="new", state=state, **fields))


@dataclass
class Ollama:
    """A server, its pool, and the models that it has removed."""

    pool: Pool
    pulls: FakePulls
    may_manage: bool = True
    removed: list[str] = field(default_factory=list)
    server: LiveServer | None = None

    async def request(self, method, path, **fields):
        body = json.dumps(fields).encode() if fields else None
        return await self.server.request(method, path, "Content-Type: application/json", body=body)

    async def post(self, path, **fields):
        """Send a request to the model, and return the response."""
        return await self.request("POST", path, **{"model": MODEL, **fields})

    async def stream(self, path, **fields):
        """Return the lines of a stream."""
        response = await self.post(path, **fields)
        assert (response.status, response.headers["Content-Type"]) == (200, "application/x-ndjson")
        chunks = [line for line in response.body.splitlines() if line.startswith(b"{")]
        return [json.loads(line) for line in chunks]

    @property
    def workers(self):
        return [worker for worker in self.pool.snapshot() if worker.in_memory]


@pytest.fixture
async def ollama(tmp_path):
    async with running_backend(tmp_path, REPO) as backend:
        catalog, pool = backend.catalog, backend.pool
        served = Ollama(pool, FakePulls())

        async def remove(record):
            served.removed.append(record.repo)

        group = ollama_routes(
            Generation(backend.service, pool),
            Embeddings(backend.service, pool),
            Models(catalog, pool),
            Management(catalog, served.pulls, remove, lambda: served.may_manage),
        )
        async with serving(create_app([group], Config)) as served.server:
            yield served
