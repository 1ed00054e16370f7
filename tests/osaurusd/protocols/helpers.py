"""What the protocols need in tests: models on disk, a pool whose workers are fakes, and records and defaults."""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from osaurusd.buffered_bytes import BufferedBytes
from osaurusd.config import Config, Defaults
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.service import Service
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import Capabilities, GenerationDefaults, ModelRecord
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.pool import Pool
from osaurusd.protocols.anthropic.routes import anthropic_routes
from osaurusd.protocols.ollama.embeddings import Embeddings
from osaurusd.protocols.ollama.generation import Generation
from osaurusd.protocols.ollama.management import Management
from osaurusd.protocols.ollama.models import Models
from osaurusd.protocols.ollama.routes import ollama_routes
from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.responses.store import MemoryStore
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.rpc.process import Launch
from osaurusd.wire.admin import Availability
from tests.osaurusd.models import disk
from tests.osaurusd.pool.helpers import COMMAND

REPO = "mlx-community/gemma-2-2b-it-4bit"
MODEL = "gemma-2-2b-instruct"
STORED_BYTES = 10**6
THINKER = Capabilities(chat=True, tools=True, reasoning=True)


@dataclass
class Backend:
    """Models, and a service that runs requests to them.

    Attributes:
        folders: the folders of the models.
    """

    folders: list[Path]
    catalog: Catalog
    pool: Pool
    service: Service


@contextlib.asynccontextmanager
async def running_backend(tmp_path, *repos, config=Config, download=None, **settings):
    """Create models with these settings in their configs; at the end, stop the workers."""
    hub = tmp_path / "hub"
    folders = [disk.write_hub(hub, repo, disk.model(**settings)) for repo in repos]
    catalog, pool = disk.make_catalog(tmp_path / "models", hub), Pool(PoolConfig(Launch(command=COMMAND)))
    try:
        yield Backend(folders, catalog, pool, Service(catalog, pool, config, download, BufferedBytes(config)))
    finally:
        async with asyncio.timeout(60):
            await pool.close()


def client_groups(backend):
    """Return the routes of all protocols."""
    memory = MemoryStore(lambda: STORED_BYTES)
    return [
        openai_routes(backend.service, backend.catalog, backend.pool),
        responses_routes(backend.service, memory, memory),
        *anthropic_routes(backend.service, backend.catalog),
        ollama_routes(
            Generation(backend.service, backend.pool),
            Embeddings(backend.service, backend.pool),
            Models(backend.catalog, backend.pool),
            Management(backend.catalog, None, None, lambda: False),
        ),
    ]


def make_record(capabilities=THINKER):
    """Create the record of a model."""
    return ModelRecord(
        name="m",
        repo="org/m",
        path=Path("m"),
        source="hub",
        state=Availability.AVAILABLE,
        created=0,
        capabilities=capabilities,
    )


def request_defaults(config=None):
    """Return the defaults of a model without sampling parameters."""
    return RequestDefaults.from_config(GenerationDefaults(), Config(defaults=config or Defaults()))
