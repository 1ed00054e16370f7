"""Helpers for tests with several models in one daemon."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tomlkit
from prometheus_client.parser import text_string_to_metric_families

from tests.daemons import Daemon
from tests.models import NO_END_TOKEN, make_tiny

TIMEOUT_SECONDS = 120

# A tiny model needs a little less than this, as its worker measures.
TINY_BYTES = 17_000_000
ROOM_FOR_TWO = 2 * TINY_BYTES + TINY_BYTES // 3
ROOM_FOR_ONE = TINY_BYTES + TINY_BYTES // 3

# A token of the starter model's tokenizer. With a bias, the model repeats it and never stops.
REPEATED_TOKEN = "260"

# A streamed chat that runs until the test ends it: the model cannot generate its end token.
ENDLESS: dict[str, Any] = {"max_tokens": 60_000, "stream": True, "logit_bias": {REPEATED_TOKEN: 100}}


def make_models(home: Path, tokenizer: Path, *names: str) -> Path:
    """Create tiny random models that generate until the context is full, which takes minutes."""
    config = {"eos_token_id": NO_END_TOKEN, "hidden_size": 256, "max_position_embeddings": 65536}
    for seed, name in enumerate(names):
        make_tiny(home / "models" / name, tokenizer, seed=seed, **config)
    return home


def configure(home: Path, **keys: object) -> None:
    """Write a configuration with these keys of `[residency]`."""
    (home / "config.toml").write_text(tomlkit.dumps({"residency": keys}))


@contextlib.contextmanager
def open_chat(daemon: Daemon, model: str, **fields: object) -> Iterator[HTTPResponse]:
    """Send a chat request; yield the response, which may still be streaming."""
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
    body = {"model": model, "messages": [{"role": "user", "content": "Go on."}], "temperature": 1, **fields}
    try:
        connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()
    finally:
        connection.close()


def read_chunks(stream: HTTPResponse, count: int) -> None:
    """Read this many chunks of a streamed response, and the comments before them, which a busy machine causes."""
    while count:
        line = stream.readline()
        assert stream.readline() == b"\n"
        if line != b": keep-alive\n":
            assert line.startswith(b"data: {")
            count -= 1


def chat(daemon: Daemon, model: str, max_tokens: int = 4) -> int:
    """Run a chat of exactly this many tokens; return the status."""
    with open_chat(daemon, model, max_tokens=max_tokens, logit_bias={REPEATED_TOKEN: 100}) as response:
        response.read()
        return response.status


def chat_all(daemon: Daemon, models: list[str], concurrency: int = 8) -> list[int]:
    """Run short chats with these models in this order; return the statuses."""
    with ThreadPoolExecutor(concurrency) as executor:
        return list(executor.map(lambda model: chat(daemon, model), models))


def get(daemon: Daemon, path: str) -> tuple[int, str]:
    """Send a GET over TCP; return status and text."""
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def read_metric(text: str, name: str, **labels: str) -> float:
    """Return the value of the first sample with this name and these labels in the text of `/metrics`."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def workers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """Return `/v0/workers` by model."""
    return {worker["model"]: worker for worker in daemon.admin("GET", "/v0/workers")[1]}


@contextlib.contextmanager
def stopped_worker(daemon: Daemon, model: str) -> Iterator[None]:
    """Stop the worker of a model while the block runs."""
    pid = workers(daemon)[model]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def events(daemon: Daemon, *kinds: str) -> list[dict[str, Any]]:
    """Return past events of these kinds, oldest first."""
    return [event for event in daemon.admin("GET", "/v0/events")[1] if event["kind"] in kinds]


def tree_bytes(daemon: Daemon) -> int:
    """Return the resident memory of the daemon and its descendants."""
    own = psutil.Process(daemon.process.pid)
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))
