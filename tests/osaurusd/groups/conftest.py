"""Two hosts in one process: a leader that serves the files of its models, and a follower's models folder."""

import asyncio
import random
from pathlib import Path

import pytest

from osaurusd.config import Pulls
from osaurusd.groups.file_service import FileService
from osaurusd.groups.files import ModelFiles
from osaurusd.groups.manifest import Manifests
from osaurusd.hosts.identity import IdentityFile
from osaurusd.hosts.registry import Host
from osaurusd.models import maintenance
from osaurusd.models.catalog import Catalog
from osaurusd.models.worker import verification
from tests.osaurusd.hosts.nodes import identity
from tests.osaurusd.http import serve
from tests.osaurusd.models import disk

LAYERS = (
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
)
CONFIG = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}


def weights(name, nbytes=1000, seed=0):
    """Return a file with two tensors, whose names begin with `name`."""
    data = disk.tensors(nbytes, layer=name)
    return data[: len(data) - nbytes] + random.Random(seed).randbytes(nbytes)


def divided_model():
    """Return a model with a file for each of two layers, and one for the embeddings."""
    return {
        "config.json": disk.config(**CONFIG),
        "tokenizer.json": b"{}",
        "README.md": b"documentation",
        "model.safetensors.index.json": disk.index(*LAYERS),
        LAYERS[0]: weights("model.embed_tokens.", seed=1),
        LAYERS[1]: weights("model.layers.0.", seed=2),
        LAYERS[2]: weights("model.layers.1.", seed=3),
    }


async def hash_files(folder, names, progress):
    """Hash files in this process: starting Python takes longer."""
    return await asyncio.to_thread(
        verification.hash_files, folder, names, lambda _file, done, total: progress(done, total)
    )


@pytest.fixture(autouse=True)
def _hashing_in_this_process(monkeypatch):
    monkeypatch.setattr(maintenance, "hash_files", hash_files)


class HostDisk:
    """The models of one host, and what groups do with them."""

    def __init__(self, root: Path):
        self.models, self.hub = root / "models", root / "hub"
        self.models.mkdir(parents=True)
        self.catalog: Catalog = disk.make_catalog(self.models, self.hub)
        self.manifests = Manifests(root / "state" / "digests.json")
        self.options = Pulls(disk_margin_bytes=0)
        (root / "host.pem").write_bytes(identity(root.name))
        self.files = ModelFiles(self.catalog, self.manifests, lambda: self.options, IdentityFile(root / "host.pem"))
        self.reports: list[tuple[str, int, int]] = []

    async def manifest(self, name="m"):
        """Build the manifest of a model as it is on the disk now."""
        await self.catalog.refresh()
        return await self.manifests.build(await self.catalog.find_any(name))

    async def ensure(self, manifest, leader, only=None):
        return await self.files.ensure(manifest, leader, only, lambda *report: self.reports.append(report))

    def copying(self):
        """Return the folders with partial copies."""
        return sorted(self.models.glob(".copying-*"))


@pytest.fixture
def leader_disk(tmp_path):
    host = HostDisk(tmp_path / "a")
    disk.write(host.models / "m", divided_model())
    return host


@pytest.fixture
def follower(tmp_path):
    return HostDisk(tmp_path / "b")


class Faults:
    """What the leader's server does besides sending files.

    Attributes:
        served: the paths and ranges of requests.
        answer: replaces the responses if it is set.
    """

    def __init__(self):
        self.served: list[tuple[str, str | None]] = []
        self.answer = None


@pytest.fixture
def faults():
    return Faults()


@pytest.fixture
async def leader(leader_disk, faults):
    """A running server with the leader's files."""
    follower = Host(name="b", url="", certificate="", fingerprint="", added_at=0)
    service = FileService(leader_disk.catalog, leader_disk.manifests, lambda *_: True, lambda _request: follower)
    (route,) = service.routes

    async def handler(request):
        faults.served.append((request.match_info["path"], request.headers.get("range")))
        return await (faults.answer(request, route.handler) if faults.answer else route.handler(request))

    app = serve.build_app((route.method, route.path, handler))
    async with serve.serving(app) as server:
        yield Host(name="a", url=server.url, certificate="", fingerprint="", link_address=None, added_at=0)
