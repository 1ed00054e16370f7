"""Caches that the unmodified client of the Hugging Face hub has filled."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes import hub

REPO = "org/model"
TWIN = "org/twin"
"""A repo with a commit of `REPO`'s, as the hub's duplicates and renamed repos have."""

OLD, NEW = "a" * 40, "b" * 40

_SHARDS = {
    f"model-0000{number}-of-00002.safetensors": random.Random(number).randbytes(200_000 + number) for number in (1, 2)
}
_COMMON = {
    **_SHARDS,
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "onnx/config.json": b'{"onnx": true}',
    "consolidated.safetensors": b"what mlx_lm never downloads",
    ".gitattributes": b"*.safetensors filter=lfs\n",
}
FILES = {
    OLD: {**_COMMON, "config.json": b'{"model_type": "llama"}', "README.md": b"The old one."},
    NEW: {**_COMMON, "config.json": b'{"model_type": "llama", "rope_theta": 1}', "README.md": b"The new one."},
}
REPOS = {REPO: FILES, TWIN: {NEW: FILES[NEW]}}

_DOWNLOAD = """
import json, sys
from huggingface_hub import snapshot_download
for arguments in json.loads(sys.argv[1]):
    snapshot_download(**arguments)
"""


def client(code, *arguments, home):
    """Runs code in a process that has the client as it is installed, without Xet, which needs a server of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    env = {**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def download(url, cache, home, *downloads):
    common = {"endpoint": url, "cache_dir": str(cache)}
    done = client(_DOWNLOAD, json.dumps([common | one for one in downloads]), home=home)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory):
    """A cache with both revisions of `REPO`, and with `TWIN`; not to be changed."""
    home = tmp_path_factory.mktemp("hf")
    with hub.serving(tmp_path_factory.mktemp("root"), REPOS) as url:
        wanted = [{"repo_id": REPO, "revision": OLD}, {"repo_id": REPO}, {"repo_id": TWIN}]
        download(url, home / "hub", home, *wanted)
    return home / "hub"


@pytest.fixture
def cache(downloaded, tmp_path):
    """A copy of that cache, with its paths."""
    return Cache(Path(shutil.copytree(downloaded, tmp_path / "hub", symlinks=True)))


class Cache(SimpleNamespace):
    """Where things lie in a Hugging Face cache."""

    def __init__(self, path):
        repo = path / "models--org--model"
        super().__init__(path=path, repo=repo, blobs=repo / "blobs", locks=path / ".locks" / repo.name)
        self.twin = path / "models--org--twin"
        self.snapshot = repo / "snapshots" / NEW

    def blob(self, name, commit=NEW):
        return self.blobs / hub.etag(name, FILES[commit][name])
