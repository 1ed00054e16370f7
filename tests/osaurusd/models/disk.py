"""Models on disk as the catalog finds them: small, whole, and made without MLX."""

import asyncio
import hashlib
import json
import os
import struct
from pathlib import Path

from osaurusd.models.catalog import Catalog
from osaurusd.models.registry import Registry

COMMIT = "5c0ffee5c0ffee5c0ffee5c0ffee5c0ffee5c0ff"


def tensors(nbytes=16, *, metadata=True):
    """The bytes of a safetensors file with two tensors that have `nbytes` together."""
    half = nbytes // 2
    header = {
        "a": {"dtype": "U8", "shape": [half], "data_offsets": [0, half]},
        "b": {"dtype": "U8", "shape": [nbytes - half], "data_offsets": [half, nbytes]},
    }
    if metadata:
        header["__metadata__"] = {"format": "mlx"}
    return with_header(json.dumps(header).encode()) + bytes(nbytes)


def with_header(header):
    """The length of a header, and the header."""
    return struct.pack("<Q", len(header)) + header


def index(*shards):
    """The bytes of a weight index that names these files."""
    return json.dumps({"metadata": {}, "weight_map": {f"layer.{at}": name for at, name in enumerate(shards)}}).encode()


def config(**settings):
    """The bytes of a config.json."""
    return json.dumps({"model_type": "llama", **settings}).encode()


def model(**settings):
    """The files of a whole model by name, as bytes."""
    return {"config.json": config(**settings), "tokenizer.json": b"{}", "model.safetensors": tensors()}


def write(folder: Path, files):
    """Write files into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def repo_folder(hub: Path, repo):
    """Where the hub cache keeps a repo."""
    return hub / "--".join(["models", *repo.split("/")])


def write_hub(hub: Path, repo, files, commit=COMMIT, *, main=True):
    """Lay a snapshot down as huggingface_hub does: blobs, links to them, and a ref. Returns the snapshot's folder."""
    root = repo_folder(hub, repo)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    if main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    return snapshot


def make_catalog(models: Path, hub: Path, *extra: Path):
    """A catalog that remembers names beside its models folder."""
    return Catalog(models, hub, Registry(models.parent / "state" / "names.json"), extra)


def scan(models: Path, hub: Path, *extra: Path):
    """What a new catalog finds, given the names that were remembered."""
    return asyncio.run(make_catalog(models, hub, *extra).records())
