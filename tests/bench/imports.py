"""What an import of a GGUF file costs whose blocks stay as they are, compared with copying and hashing the file."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import gguf
import numpy as np
import psutil
from gguf import GGMLQuantizationType

from osaurusd.imports.worker.gguf import read_header
from tests import starter_model
from tests.bench.client import MeasurementError
from tests.bench.measurements import Figures
from tests.daemons import Daemon
from tests.osaurusd.imports.worker.networks import add_value

HEAD_SIZE = 128
BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18
# The second byte of a block, the upper half of its scale: about 0.01.
SCALE_BYTE = 0x20


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama. With the vocabulary of the starter model, `LARGE` takes 250 MB and `SMALL` 5 MB."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int


LARGE = Shape(hidden=1536, inner=8960, heads=12, kv_heads=2, layers=8)
SMALL = Shape(hidden=128, inner=128, heads=1, kv_heads=1, layers=8)

LAYER_MEGABYTES = 26.5
DEFAULT_MEGABYTES = 250


def large(megabytes: int) -> Shape:
    """Return the shape of a Llama of about this size."""
    return replace(LARGE, layers=max(1, LARGE.layers + round((megabytes - DEFAULT_MEGABYTES) / LAYER_MEGABYTES)))


def write_source(path: Path, shape: Shape) -> None:
    """Write a Llama with random Q4_0 matrices, and the vocabulary of the starter model."""
    metadata = dict(read_header(starter_model.fetch()).metadata.items())
    tokenizer = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    vocabulary = len(metadata["tokenizer.ggml.tokens"])
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {
        "llama.context_length": 2048,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.inner,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, value in (sizes | tokenizer).items():
        add_value(writer, key, value)
    add_tensors(writer, vocabulary, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensors(writer: gguf.GGUFWriter, vocabulary: int, shape: Shape) -> None:
    hidden, keys = shape.hidden, shape.kv_heads * HEAD_SIZE
    random = np.random.default_rng(0)

    def add_matrix(name: str, rows: int, columns: int) -> None:
        blocks = random.integers(0, 256, (rows, columns // BLOCK_WEIGHTS * BLOCK_BYTES), np.uint8)
        blocks.reshape(-1, BLOCK_BYTES)[:, 1] = SCALE_BYTE
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=GGMLQuantizationType.Q4_0)

    add_matrix("token_embd", vocabulary, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(shape.layers):
        for name, rows in (("attn_q", hidden), ("attn_k", keys), ("attn_v", keys), ("attn_output", hidden)):
            add_matrix(f"blk.{layer}.{name}", rows, hidden)
        for name, rows, columns in (
            ("gate", shape.inner, hidden),
            ("up", shape.inner, hidden),
            ("down", hidden, shape.inner),
        ):
            add_matrix(f"blk.{layer}.ffn_{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))


def import_files(daemon: Daemon, large: Path, small: Path) -> Figures:
    """Import a large file and one that has nothing but the same vocabulary."""
    return import_file(daemon, large) | {f"small {name}": value for name, value in import_file(daemon, small).items()}


def import_file(daemon: Daemon, source: Path) -> Figures:
    """Import the file through the daemon, from the request until the model is available."""
    process = psutil.Process(daemon.process.pid)
    figures = measure(lambda: run_import(daemon, source), lambda: spent(process))
    daemon.admin("POST", "/v0/models/remove", {"models": [source.stem], "force": True})
    return figures


def copy_and_hash(source: Path) -> Figures:
    """Copy the file with `cp`, then compute its SHA-256: with OpenSSL, as osaurusd does, and with a command."""
    copy = source.with_suffix(".copy")
    command = ["sha256sum"] if shutil.which("sha256sum") else ["shasum", "-a", "256"]

    def run_openssl() -> None:
        subprocess.run(["cp", source, copy], check=True)
        with source.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    def run_command() -> None:
        subprocess.run(["cp", source, copy], check=True)
        subprocess.run([*command, source], check=True, stdout=subprocess.DEVNULL)

    figures = {}
    for name, run in (("", run_openssl), ("command ", run_command)):
        timed = measure(run, lambda: sum(os.times()[:4]))
        figures |= {f"{name}{figure}": value for figure, value in timed.items()}
        copy.unlink()
    return figures


def measure(run: Callable[[], None], processor_seconds: Callable[[], float]) -> Figures:
    before, start = processor_seconds(), perf_counter()
    run()
    return {"seconds": perf_counter() - start, "processor seconds": processor_seconds() - before}


def spent(process: psutil.Process) -> float:
    """Return the processor time of a process and its children that have exited."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def run_import(daemon: Daemon, source: Path) -> None:
    _, events = daemon.admin("POST", "/v0/imports", {"path": str(source)})
    if events[-1]["event"] != "done":
        raise MeasurementError(f"the import failed: {events[-1]}")
