"""A group of ranks: joining it, the facts that its ranks exchange while the model is loaded, and what they execute.

The sockets of MLX are neither encrypted nor authenticated, and the first process that connects is the neighbor. So all
ranks prove that they know the secret of the group before they exchange anything else.
"""

import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import msgspec

from osaurusd.errors import LoadFailed
from osaurusd.rpc import messages
from osaurusd.worker.engine.kv_cache import Cache, CacheLayout, Window
from osaurusd.worker.engine.memory import MemoryBudget
from osaurusd.worker.engine.prefix_cache import Tokens
from osaurusd.worker.parallel.local import LocalExecutor


class _Memory(msgspec.Struct, frozen=True):
    """What the memory budget of a rank depends on."""

    limit_bytes: int | None
    weights_bytes: int
    pass_bytes_per_token: int
    score_bytes: int
    bytes_per_token: int
    windows: list[tuple[int, int]]
    constant_bytes: int
    has_states: bool


class RankGroup:
    """The ranks of a model. Every rank must call the same methods in the same order, on the thread that owns MLX."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self.mlx = group
        self.rank = group.rank()
        self.size = group.size()

    def exchange(self, data: bytes) -> list[bytes]:
        """Send `data` to all ranks, and return what each of them has sent."""
        lengths: list[int] = self._gather(mx.array([len(data)])).tolist()  # type: ignore[assignment]
        longest = max(lengths)
        gathered = self._gather_bytes(data.ljust(longest, b"\0"))
        starts = range(0, longest * self.size, longest)
        return [gathered[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def agree(self, decision: bool) -> bool:
        """Whether all ranks have decided so."""
        total = mx.distributed.all_sum(mx.array(int(decision)), group=self.mlx, stream=mx.cpu)
        return total.item() == self.size

    def share(self, budget: MemoryBudget) -> None:
        """Give `budget` those of the other ranks as peers, and its layout what must be equal for all."""
        facts = self.exchange(msgspec.json.encode(_describe(budget)))
        ranks = [msgspec.json.decode(fact, type=_Memory) for fact in facts]
        budget.layout = replace(budget.layout, has_states=any(rank.has_states for rank in ranks))
        budget.peers = [_budget(rank, budget) for number, rank in enumerate(ranks) if number != self.rank]

    def check_secret(self, secret: str, epoch: int) -> None:
        """Check that every rank knows the secret.

        Raises:
            LoadFailed: one does not.
        """
        expected = [_proof(secret, epoch, rank) for rank in range(self.size)]
        received = self._gather_bytes(expected[self.rank])
        if not hmac.compare_digest(received, b"".join(expected)):
            raise LoadFailed(
                "a program that does not know the secret of this group has connected to it; check what can reach the "
                "link addresses of the hosts"
            )

    def _gather_bytes(self, data: bytes) -> bytes:
        """Return what all ranks have sent, which must have equal lengths."""
        return bytes(self._gather(mx.array(list(data), mx.uint8)).tolist())  # type: ignore[arg-type]

    def _gather(self, array: mx.array) -> mx.array:
        return mx.distributed.all_gather(array, group=self.mlx, stream=mx.cpu)


class RankExecutor(LocalExecutor):
    """An executor whose passes exchange arrays with other ranks.

    All ranks must do that in the same order. Within a pass, the arrays depend on each other. Of two passes that MLX
    evaluates together, it may begin with either. So every pass is evaluated, or scheduled, before the next one.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answers_first = False  # a pass that begins late could be at another place in the order

    def _prefill_padded(self, cache: Cache, parts: list[Tokens]) -> None:
        super()._prefill_padded(cache, parts)
        mx.async_eval([layer.state for layer in cache])  # type: ignore[no-untyped-call]


def free_port(address: str) -> int:
    """Return a port of an IPv4 address on which this rank can accept its neighbor."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port


def join(spec: messages.RankSpec, frame: messages.Connect) -> RankGroup:
    """Join the group, and check that all others belong to it.

    Raises:
        LoadFailed: the group is incomplete, or another process has connected to it.
    """
    # MLX waits for the neighbors without any limit, and without releasing the interpreter lock.
    backend = "jaccl" if frame.rdma_devices else "ring"
    with _time_limit(frame.timeout_seconds), environment(spec, frame):
        try:
            group = RankGroup(mx.distributed.init(strict=True, backend=backend))
        except RuntimeError as error:
            raise LoadFailed(f"rank {spec.rank} cannot connect to its neighbors: {error}") from error
        if group.size != spec.size:
            raise LoadFailed(f"the group has {group.size} ranks instead of {spec.size}")
        group.check_secret(frame.secret, frame.epoch)
    return group


def _proof(secret: str, epoch: int, rank: int) -> bytes:
    return hmac.new(secret.encode(), f"{epoch}:{rank}".encode(), hashlib.sha256).digest()


@contextlib.contextmanager
def environment(spec: messages.RankSpec, frame: messages.Connect) -> Iterator[None]:
    """Set the environment variables that MLX reads. The file that they refer to has no name, so none is left behind.

    With TCP, it has the addresses of each rank. With RDMA, it has a row for each rank with its device for each other
    one, and the ranks meet at the address of rank 0.
    """
    with tempfile.TemporaryFile("w") as file:
        path = f"/dev/fd/{file.fileno()}"
        variables = {"MLX_RANK": str(spec.rank)}
        if frame.rdma_devices:
            first, second = frame.rdma_devices
            json.dump([[None, first], [second, None]], file)
            variables |= {"MLX_IBV_DEVICES": path, "MLX_JACCL_COORDINATOR": frame.addresses[0]}
        else:
            json.dump([[address] for address in frame.addresses], file)
            variables["MLX_HOSTFILE"] = path
        file.flush()
        file.seek(0)
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del os.environ[name]


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Have the system end this process by SIGALRM after `seconds`."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _describe(budget: MemoryBudget) -> _Memory:
    windows: dict[int, int] = {}
    for window in budget.layout.windows:
        windows[window.tokens] = windows.get(window.tokens, 0) + window.bytes_per_token
    return _Memory(
        budget.limit_bytes,
        budget.weights_bytes,
        budget.pass_bytes_per_token,
        budget.score_bytes,
        budget.layout.bytes_per_token,
        list(windows.items()),
        budget.layout.constant_bytes,
        budget.layout.has_states,
    )


def _budget(rank: _Memory, own: MemoryBudget) -> MemoryBudget:
    layout = CacheLayout(
        groups=(),
        bytes_per_token=rank.bytes_per_token,
        windows=tuple(Window(tokens, nbytes) for tokens, nbytes in rank.windows),
        constant_bytes=rank.constant_bytes,
        has_states=rank.has_states,
        batchable=own.layout.batchable,
    )
    return MemoryBudget(
        layout=layout,
        weights_bytes=rank.weights_bytes,
        limit_bytes=rank.limit_bytes,
        pass_bytes_per_token=rank.pass_bytes_per_token,
        score_bytes=rank.score_bytes,
        chunk_sizer=own.chunk_sizer,
    )
