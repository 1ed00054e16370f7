"""Hosts whose daemons are paired: the first leads, the others follow."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from openai import APIError, OpenAI

from tests.distributed.hosts import Host, connected_hosts
from tests.distributed.models import PROMPTS, Reference, connect, create_references, make_models

SETTLE_SECONDS = 60.0
POLL_SECONDS = 0.05


class Cluster:
    """Paired hosts.

    Attributes:
        hosts: all of them.
        leader: the host to which clients send requests.
        followers: the hosts that lend memory to the leader.
        client: OpenAI's client, connected to the leader.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = list(hosts)
        self.leader, *self.followers = hosts

    @property
    def client(self) -> OpenAI:
        return connect(self.leader.url)

    def start(self) -> None:
        for host in self.hosts:
            host.start()

    def pair(self) -> None:
        for follower in self.followers:
            pair(self.leader, follower)

    def load(self, model: str, split: str, size: int) -> Any:
        """Load a model on the leader and the first followers, and return what the CLI prints."""
        names = ",".join(follower.name for follower in self.followers[: size - 1])
        return self.leader.ctl("load", model, "--hosts", names, "--split", split)

    def unload(self, model: str) -> None:
        self.leader.ctl("unload", model)

    def references(self, model: str, *, seed: int = 0, count: int = PROMPTS) -> list[Reference]:
        """Create references on the leader alone, and unload the model."""
        with self.client as client:
            found = create_references(client, model, seed=seed, count=count)
        self.unload(model)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The workers on all hosts."""
        return [rank for host in self.hosts for rank in host.ranks()]

    def check_nothing_left(self, model: str) -> None:
        """Unload the model; then no host has a worker, a lease or a file of it."""
        self.unload(model)
        wait_until(lambda: not self.ranks(), "workers are left")
        wait_until(lambda: not any(leases(host) for host in self.hosts), "leases are left")
        for host in self.hosts:
            wait_until(lambda host=host: not host.temporary_files(), f"temporary files are left on {host.name}")


def pair(host: Host, other: Host) -> str:
    """Pair two hosts as a user does: show a code on one, and enter it on the other. Return the code."""
    code: str = other.ctl("host", "code")["code"]
    url = f"https://{other.node.control}"
    own = ("--link-address", other.node.address, "--as", host.name)
    host.ctl("host", "add", other.name, url, *own, text=f"{code}\n")
    return code


def leases(host: Host) -> list[dict[str, Any]]:
    """The memory that a host lends."""
    return [worker for worker in host.ctl("ps") if worker.get("lease")]


def wait_until(condition: Callable[[], bool], problem: str, timeout: float = SETTLE_SECONDS) -> float:
    """Wait for a state that has no event; return how many seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout, problem
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


@contextlib.contextmanager
def running_cluster(*names: str, tokenizer: Path, models: Sequence[str] = (), **distributed: Any) -> Iterator[Cluster]:
    """Run daemons that are paired.

    Args:
        names: of the hosts, that of the leader first.
        tokenizer: the folder with the tokenizer of the models.
        models: the tiny models that the leader has.
        distributed: settings of `[distributed]` on all hosts.
    """
    with connected_hosts(*names) as hosts:
        cluster = Cluster(hosts)
        make_models(cluster.leader.home / "models", tokenizer, *models)
        for host in hosts:
            host.configure("distributed", **distributed)
        cluster.start()
        cluster.pair()
        yield cluster


@contextlib.contextmanager
def generating(client: OpenAI, model: str, tokens: int = 12_000) -> Iterator["Generation"]:
    """Start a request, and wait for its first token. By default, it takes longer than any pause of a slow machine."""
    messages = [{"role": "user", "content": "amber basin"}]
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, temperature=0, stream=True
    )
    with stream:
        next(stream)
        yield Generation(stream)


class Generation:
    """A streamed response."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def error(self) -> APIError | None:
        """Wait for the end of the response; return the error that ended it."""
        try:
            for _ in self._stream:
                pass
        except APIError as error:
            return error
        return None
