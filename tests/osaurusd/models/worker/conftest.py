"""Hugging Face caches that the unmodified huggingface_hub has filled."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import hub

REPO = "org/model"
TWIN = "org/twin"
"""A repository that shares a commit with `REPO`, like a duplicated or renamed one."""

OLD, NEW = "a" * 40, "b" * 40

_SHARDS = {
    f"model-0000{number}-of-00002.safetensors": random.Random(number).randbytes(200_000 + number) for number in (1, 2)
}
_COMMON = {
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    **_SHARDS,
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "onnx/config.json": b'{"onnx": true}',
    "consolidated.safetensors": b"not downloaded by mlx_lm",
    ".gitattributes": b"*.safetensors filter=lfs\n",
}
FILES = {
    OLD: {**_COMMON, "config.json": b'{"model_type": "llama"}', "README.md": b"The old revision."},
    NEW: {**_COMMON, "config.json": b'{"model_type": "llama", "rope_theta": 1}', "README.md": b"The new revision."},
}
REPOS = {REPO: FILES, TWIN: {NEW: FILES[NEW]}}

_DOWNLOAD = """
import json, sys
from huggingface_hub import snapshot_download
for arguments in json.loads(sys.argv[1]):
    snapshot_download(**arguments)
"""

# A private function: without the Xet server, nothing public creates a shared blob.
_SHARE_BLOB = """
import sys
from pathlib import Path
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
cache, name = Path(sys.argv[1]), sys.argv[2]
for repo in sys.argv[3:]:
    blob = cache / repo / "blobs" / name
    assert publish_blob_to_shared_store(
        blob_path=str(blob), xet_hash="e" * 64, cache_dir=cache, expected_size=blob.stat().st_size
    )
"""


def run_python(code, *arguments, home):
    """Run code with the installed huggingface_hub; without Xet, which needs a separate server."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    env = {**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)


def download(url, cache, home, *requests):
    """Call `snapshot_download` once for each dict of arguments."""
    common = {"endpoint": url, "cache_dir": str(cache)}
    result = run_python(_DOWNLOAD, json.dumps([common | request for request in requests]), home=home)
    assert result.returncode == 0, result.stderr


def share_blob(cache, blob, home):
    """Move a blob into the store that repositories share, as huggingface_hub does for Xet downloads."""
    result = run_python(_SHARE_BLOB, str(cache.path), blob.name, cache.repo.name, cache.twin.name, home=home)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory):
    """A cache with both revisions of `REPO`, and `TWIN`. Tests must not change it."""
    home = tmp_path_factory.mktemp("hf")
    with hub.serving(tmp_path_factory.mktemp("root"), REPOS) as url:
        requests = [{"repo_id": REPO, "revision": OLD}, {"repo_id": REPO}, {"repo_id": TWIN}]
        download(url, home / "hub", home, *requests)
    return home / "hub"


@pytest.fixture
def cache(downloaded, tmp_path):
    """A copy of the cache."""
    return Cache(Path(shutil.copytree(downloaded, tmp_path / "hub", symlinks=True)))


@dataclass(frozen=True)
class Cache:
    """The paths in a Hugging Face cache."""

    path: Path

    @property
    def repo(self):
        return self.path / "models--org--model"

    @property
    def twin(self):
        return self.path / "models--org--twin"

    @property
    def blobs(self):
        return self.repo / "blobs"

    @property
    def locks(self):
        return self.path / ".locks" / self.repo.name

    @property
    def snapshot(self):
        return self.repo / "snapshots" / NEW

    def blob(self, name, commit=NEW):
        return self.blobs / hub.etag(name, FILES[commit][name])
