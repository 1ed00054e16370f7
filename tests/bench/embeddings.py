"""`python -m tests.bench.embeddings`: throughput of embeddings, and how they affect a chat beside them.

With `--onnx FILE`, compares with ONNX Runtime, which is not a dependency: install `onnxruntime` for it. FILE is
all-MiniLM-L6-v2 with the inputs `input_ids` and `attention_mask` and the output `last_hidden_state`, for example
exported by `torch.onnx.export`. Compare figures within a run only. A run takes less than two minutes on an idle machine
with 2 cores.
"""

import argparse
import importlib
import json
import operator
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from openai import OpenAI
from tokenizers import Tokenizer

from osaurusd.imports.worker.importer import import_model
from tests import daemons, embedding_model, starter_model
from tests.daemons import Daemon

CHAT_MODEL = "smollm2-135m-instruct"
MAX_TOKENS = 256
BATCH_TOKENS = 2048
CHAT_TOKENS = 200
STREAM_INPUTS = 256

Texts = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.embeddings", description=__doc__)
    parser.add_argument("--onnx", type=Path, help="the model for ONNX Runtime")
    parser.add_argument("--texts", type=int, default=64, help="number of texts of 8 to 256 tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-chat", action="store_true", help="skip the chat")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        shutil.copytree(embedding_model.fetch(), home / "models" / embedding_model.NAME)
        if not options.no_chat:
            (home / "models" / CHAT_MODEL).mkdir()
            import_model(starter_model.fetch(), home / "models" / CHAT_MODEL, lambda *_: None)
        with daemons.running(home) as daemon:
            print(json.dumps(measure(daemon, options), indent=2))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measure(daemon: Daemon, options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second of each way to embed the same texts, and the gaps of a chat."""
    client = OpenAI(base_url=f"{daemon.url}/v1", api_key="not-needed", max_retries=0)
    texts = make_texts(options.texts)
    ways: dict[str, Callable[[], object]] = {
        "one request": lambda: embed(client, texts),
        "one by one": lambda: [embed(client, [text]) for text in texts],
    }
    if options.onnx:
        ways["ONNX Runtime"] = onnx(options.onnx, texts)
    tokens = sum(len(text) + 2 for text in texts)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    embed(client, texts[:1])
    for number in range(options.rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    rates = {name: round(tokens / statistics.median(values)) for name, values in seconds.items()}
    # Of times measured directly after each other, so that disturbances of both cancel out.
    ratios = {
        f"one request / {name}": round(statistics.median(map(operator.truediv, values, seconds["one request"])), 2)
        for name, values in list(seconds.items())[1:]
    }
    result: dict[str, Any] = {"tokens": tokens, "tokens per second": rates, "ratios": ratios}
    if not options.no_chat:
        result["chat gaps in ms"] = measure_gaps(client)
    return result


def make_texts(count: int, size: int | None = None) -> Texts:
    """Create texts of random tokens, without the special ones."""
    source = random.Random(1)
    sizes = [size or source.randint(8, MAX_TOKENS) for _ in range(count)]
    return [[source.randint(1996, 29000) for _ in range(each - 2)] for each in sizes]


def embed(client: OpenAI, texts: Texts) -> None:
    client.embeddings.create(model=embedding_model.NAME, input=texts)


def onnx(path: Path, texts: Texts) -> Callable[[], object]:
    """Return a function that embeds the texts with ONNX Runtime, in batches of similar length."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first, last = Tokenizer.from_file(str(embedding_model.fetch() / "tokenizer.json")).encode("").ids[:2]
    ordered = sorted(([first, *text, last] for text in texts), key=len)

    def run() -> None:
        rest = ordered
        while rest:
            count = max(BATCH_TOKENS // len(rest[-1]), 1)
            embed_batch(session, rest[-count:])
            rest = rest[:-count]

    return run


def embed_batch(session: Any, batch: Sequence[list[int]]) -> np.ndarray:
    longest = len(batch[-1])
    tokens = np.array([[*text, *[0] * (longest - len(text))] for text in batch])
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
    (hidden,) = session.run(None, {"input_ids": tokens, "attention_mask": mask})
    pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    result: np.ndarray = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return result


def measure_gaps(client: OpenAI) -> dict[str, float]:
    """Return the gaps between the pieces of a chat's stream, alone and while a large request is embedded."""
    alone = chat_gaps(client, lambda: True)
    done = threading.Event()

    def embed_many() -> None:
        try:
            embed(client, make_texts(STREAM_INPUTS, MAX_TOKENS))
        finally:
            done.set()

    worker = threading.Thread(target=embed_many)
    worker.start()
    beside: list[float] = []
    while not done.is_set():
        beside += chat_gaps(client, lambda: not done.is_set())
    worker.join()
    normal = statistics.median(alone)
    return {
        "alone, median": round(normal * 1000, 1),
        "alone, longest": round(max(alone) * 1000, 1),
        "beside, median": round(statistics.median(beside) * 1000, 1),
        "beside, longest": round(max(beside) * 1000, 1),
        "longest beside / median alone": round(max(beside) / normal, 1),
    }


def chat_gaps(client: OpenAI, goes_on: Callable[[], bool]) -> list[float]:
    """Return the gaps of one stream, as long as `goes_on` is true."""
    messages = [{"role": "user", "content": "Write a long story about a dinosaur."}]
    stream = client.chat.completions.create(
        model=CHAT_MODEL, messages=messages, max_tokens=CHAT_TOKENS, temperature=0, stream=True
    )
    gaps, previous = [], None
    for _ in stream:
        now = time.perf_counter()
        if previous is not None:
            gaps.append(now - previous)
        previous = now
        if not goes_on():
            break
    stream.close()
    return gaps[1:]


if __name__ == "__main__":
    main()
