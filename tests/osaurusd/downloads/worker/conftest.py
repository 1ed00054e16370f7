"""Pulls from the fake hub, in this process or in a child process."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from osaurusd.downloads import messages
from osaurusd.downloads.worker import transfer
from osaurusd.downloads.worker.pull import PullOptions
from osaurusd.downloads.worker.pull import pull as run_pull
from osaurusd.downloads.worker.transfer import TransferLimits
from osaurusd.models.roots import pulls_folder
from tests.fakes import hub as fake_hub
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
    "modeling_llama.py": b"raise SystemExit('executed')",
    "pytorch_model.bin": b"\x80\x04unpickled",
    "consolidated.safetensors": b"not loaded by mlx_lm",
    "onnx/config.json": b"{}",
    ".gitattributes": b"*.safetensors filter=lfs\n",
}

LARGE = "org/large"
LARGE_BYTES = 80_000_000
"""Three parts."""


@pytest.fixture(scope="session")
def large_file(tmp_path_factory, _hub):
    """The weights of `LARGE`, a model that is received in several parts. Few tests spend the time to create it."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [LARGE_BYTES], "data_offsets": [0, LARGE_BYTES]}}).encode()
    path.write_bytes(disk.with_header(header) + random.Random(1).randbytes(LARGE_BYTES))
    _hub.publish(LARGE, disk.model() | {"model.safetensors": path})
    return path


@pytest.fixture(scope="session")
def _hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    fake_hub.publish(root, REPO, FILES | UNWANTED)
    with fake_hub.running(root) as hub:
        yield hub


@pytest.fixture
def hub(_hub):
    """The fake hub, without faults and recorded requests."""
    _hub.reset()
    return _hub


@pytest.fixture
def env(hub, tmp_path):
    """The environment of a process that uses the fake hub, without tokens and proxies."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "hub cache")


@pytest.fixture
def start_pull(env, cache):
    """Start a pull in a child process: a context manager as `process.running`."""

    def start(repo=REPO, **options):
        arguments = [f"--{name}={value}" for name, value in ({"cache": cache.path, "repo": repo} | options).items()]
        return process.running(
            "pull", *arguments, module="osaurusd.downloads.worker", decoder=messages.DECODER, env=env
        )

    return start


@pytest.fixture
def pull(hub, cache, tmp_path, monkeypatch):
    """Run a pull in this process, which has imported huggingface_hub already; returns the result frame."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(transfer, "FIRST_DELAY_SECONDS", 0.05)
    for name in [name for name in os.environ if "proxy" in name.lower() or name.startswith("HF_")]:
        monkeypatch.delenv(name)

    async def run(repo=REPO, *, revision="main", stall=30.0, retry=60.0, margin=0):
        options = PullOptions(cache.path, repo, revision, TransferLimits(6, stall, retry), margin)
        return await run_pull(options, lambda frame: None)

    return run


@pytest.fixture
def run_client(env):
    """Run code with the installed huggingface_hub; returns the JSON that it prints."""

    def run(code, *arguments, **extra_env):
        # All of the package takes a second to import.
        names = "hf_hub_download, scan_cache_dir, snapshot_download"
        command = [sys.executable, "-c", f"import json, sys\nfrom huggingface_hub import {names}\n{code}"]
        result = subprocess.run(
            [*command, *map(str, arguments)], env=env | extra_env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


class Cache:
    """The content of a Hugging Face cache."""

    def __init__(self, path: Path):
        self.path = path

    def repo(self, repo=REPO):
        return disk.repo_folder(self.path, repo)

    def snapshot(self, repo=REPO):
        """Return the files of the snapshot that `main` refers to: content by name."""
        root = self.repo(repo)
        folder = root / "snapshots" / (root / "refs" / "main").read_text()
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def staged(self):
        """Return the files in the staging folders."""
        return [path for path in pulls_folder(self.path).rglob("*") if path.is_file()]

    def blobs(self):
        return sorted(path.name for path in self.path.glob("models--*/blobs/*"))
