"""What tests of many models in one daemon share."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tomlkit

from tests.daemons import Daemon
from tests.models import make_tiny

PATIENCE_SECONDS = 120

# What a tiny model needs, as its worker reckons, is a little less than this.
TINY_BYTES = 11_600_000
ROOM_FOR_TWO = 2 * TINY_BYTES + TINY_BYTES // 3
ROOM_FOR_ONE = TINY_BYTES + TINY_BYTES // 3


def make_models(home: Path, tokenizer: Path, *names: str) -> Path:
    """Tiny random models whose answers go on until the context is full."""
    for seed, name in enumerate(names):
        make_tiny(home / "models" / name, tokenizer, eos_token_id=49151, seed=seed)
    return home


def configure(home: Path, **keys: object) -> None:
    """Write a configuration with these keys of `[residency]`."""
    (home / "config.toml").write_text(tomlkit.dumps({"residency": keys}))


@contextlib.contextmanager
def asked(daemon: Daemon, model: str, **fields: object) -> Iterator[HTTPResponse]:
    """The answer to a chat, which may still be coming."""
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_SECONDS)
    body = {"model": model, "messages": [{"role": "user", "content": "Go on."}], "temperature": 1, **fields}
    try:
        connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()
    finally:
        connection.close()


# Of the starter model's tokenizer; said again and again it is text each time, and never the end.
THE = "260"


def ask(daemon: Daemon, model: str, max_tokens: int = 4) -> int:
    """The status of a chat that has just so many tokens."""
    with asked(daemon, model, max_tokens=max_tokens, logit_bias={THE: 100}) as answer:
        answer.read()
        return answer.status


def ask_all(daemon: Daemon, models: list[str], at_once: int = 8) -> list[int]:
    """The statuses of short chats with these models, several at once, in this order."""
    with ThreadPoolExecutor(at_once) as executor:
        return list(executor.map(lambda model: ask(daemon, model), models))


def get(daemon: Daemon, path: str) -> tuple[int, str]:
    """Status and text of a GET over TCP."""
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def workers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """What `/v0/workers` says, by model."""
    return {worker["model"]: worker for worker in daemon.admin("GET", "/v0/workers")[1]}


def events(daemon: Daemon, *kinds: str) -> list[dict[str, Any]]:
    """Events of these kinds so far, the oldest first."""
    return [event for event in daemon.admin("GET", "/v0/events")[1] if event["kind"] in kinds]


def tree_bytes(daemon: Daemon) -> int:
    """Resident memory of the daemon and all of its descendants."""
    own = psutil.Process(daemon.process.pid)
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))
