"""Small but complete models on disk, created without MLX."""

import asyncio
import hashlib
import json
import os
import struct
from pathlib import Path

from osaurusd.models import roots
from osaurusd.models.catalog import Catalog
from osaurusd.models.names import NameRegistry

COMMIT = "5c0ffee5c0ffee5c0ffee5c0ffee5c0ffee5c0ff"


def tensors(nbytes=16, *, metadata=True, layer=""):
    """Return the bytes of a safetensors file with two tensors of `nbytes` in total, whose names begin with `layer`."""
    half = nbytes // 2
    header = {
        f"{layer}a": {"dtype": "U8", "shape": [half], "data_offsets": [0, half]},
        f"{layer}b": {"dtype": "U8", "shape": [nbytes - half], "data_offsets": [half, nbytes]},
    }
    if metadata:
        header["__metadata__"] = {"format": "mlx"}
    return with_header(json.dumps(header).encode()) + bytes(nbytes)


def with_header(header):
    """Return a safetensors header preceded by its length."""
    return struct.pack("<Q", len(header)) + header


def index(*shards):
    """Return the bytes of a weight index for these shards."""
    return json.dumps(
        {"metadata": {}, "weight_map": {f"layer.{number}": name for number, name in enumerate(shards)}}
    ).encode()


def config(**settings):
    """Return the bytes of a config.json."""
    return json.dumps({"model_type": "llama", **settings}).encode()


def model(**settings):
    """Return the files of a complete model: bytes by name."""
    return {"config.json": config(**settings), "tokenizer.json": b"{}", "model.safetensors": tensors()}


def embedder(**settings):
    """Return the files of a model that embeds text: BERT with mean pooling and normalization."""
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 512}
    return {
        **model(model_type="bert", architectures=["BertModel"], **{**sizes, **settings}),
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": json.dumps({"pooling_mode_mean_tokens": True}).encode(),
    }


def write(folder: Path, files):
    """Write files into a folder, creating it if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def repo_folder(hub: Path, repo):
    """Return the folder of a repository in a Hugging Face cache."""
    return roots.repo_folder(hub, repo)


def write_hub(hub: Path, repo, files, commit=COMMIT, *, main=True):
    """Write a snapshot in huggingface_hub's layout: blobs, links and a ref. Returns the snapshot's folder."""
    root = repo_folder(hub, repo)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    return snapshot


def make_catalog(models: Path, hub: Path, *extra: Path):
    """Create a catalog whose names are stored beside its models folder."""
    return Catalog(models, hub, NameRegistry(models.parent / "state" / "names.json"), extra)


def scan(models: Path, hub: Path, *extra: Path):
    """Return the records of a new catalog with the stored names."""
    return asyncio.run(make_catalog(models, hub, *extra).records())
