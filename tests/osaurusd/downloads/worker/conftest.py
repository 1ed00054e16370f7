"""Pulls by real processes from a stand-in for the hub."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from osaurusd.downloads.worker import transfer
from osaurusd.downloads.worker.pull import Order, answer
from osaurusd.downloads.worker.transfer import Limits
from osaurusd.rpc import messages
from tests.fakes import hub as stand_in
from tests.osaurusd.models import disk
from tests.osaurusd.models.worker import process

REPO = "org/model"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES = {
    "config.json": disk.config(),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": disk.index(*SHARDS),
    SHARDS[0]: disk.tensors(400_000),
    SHARDS[1]: disk.with_header(b"{}") + random.Random(2).randbytes(300_000),
    "README.md": b"---\nlicense: mit\n---\n",
}
UNWANTED = {
    "modeling_llama.py": b"raise SystemExit('never run')",
    "pytorch_model.bin": b"\x80\x04never unpickled",
    "consolidated.safetensors": b"what mlx_lm never loads",
    "onnx/config.json": b"{}",
    ".gitattributes": b"*.safetensors filter=lfs\n",
}

LARGE = "org/large"
LARGE_BYTES = 80_000_000
"""Three parts."""


@pytest.fixture(scope="session")
def large_file(tmp_path_factory):
    """The weights of a model that is received in several parts."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [LARGE_BYTES], "data_offsets": [0, LARGE_BYTES]}}).encode()
    path.write_bytes(disk.with_header(header) + random.Random(1).randbytes(LARGE_BYTES))
    return path


@pytest.fixture(scope="session")
def _hub(tmp_path_factory, large_file):
    root = tmp_path_factory.mktemp("hub")
    stand_in.publish(root, REPO, FILES | UNWANTED)
    stand_in.publish(root, LARGE, disk.model() | {"model.safetensors": large_file})
    with stand_in.running(root) as hub:
        yield hub


@pytest.fixture
def hub(_hub):
    """The stand-in, with nothing wrong and nothing asked yet."""
    _hub.reset()
    return _hub


@pytest.fixture
def env(hub, tmp_path):
    """The environment of a hub's client: no tokens, no proxies, and the stand-in for the hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "hub cache")


@pytest.fixture
def pulling(env, cache):
    """Start a pull: its process, its frames, and the writer that ends it."""

    def start(repo=REPO, **options):
        arguments = [f"--{name}={value}" for name, value in ({"cache": cache.path, "repo": repo} | options).items()]
        return process.running(
            "pull", *arguments, module="osaurusd.downloads.worker", decoder=messages.FROM_HUB, env=env
        )

    return start


@pytest.fixture
def pull(hub, cache, tmp_path, monkeypatch):
    """Pull to the end, in this process, which has the hub's client loaded; returns the last frame."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.05)
    for name in [name for name in os.environ if "proxy" in name.lower() or name.startswith("HF_")]:
        monkeypatch.delenv(name)

    async def run(repo=REPO, *, revision="main", stall=30.0, patience=60.0, margin=0):
        order = Order(cache.path, repo, revision, Limits(6, stall, patience), margin)
        return await answer(order, lambda frame: None)

    return run


@pytest.fixture
def client(env):
    """Run code with the hub's client as it is installed; what it prints is JSON."""

    def run(code, *arguments, **more):
        command = [sys.executable, "-c", f"import json, sys\nfrom huggingface_hub import *\n{code}"]
        done = subprocess.run(
            [*command, *map(str, arguments)], env=env | more, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


class Cache:
    """Where things lie."""

    def __init__(self, path: Path):
        self.path = path

    def repo(self, repo=REPO):
        return disk.repo_folder(self.path, repo)

    def snapshot(self, repo=REPO):
        """What the snapshot that `main` means holds, by name."""
        root = self.repo(repo)
        folder = root / "snapshots" / (root / "refs" / "main").read_text()
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def staged(self):
        """What lies in the staging folder."""
        return [path for path in (self.path / ".locks" / ".osaurus-pulls").rglob("*") if path.is_file()]

    def blobs(self):
        return sorted(path.name for path in self.path.glob("models--*/blobs/*"))
