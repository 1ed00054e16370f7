"""Planning which host runs which part of a model. Pure: no clock, files or network.

mlx_lm gives the last layers to rank 0, which is the leader, and every rank of a pipeline keeps the embeddings, the last
norm and the head: each rank passes the result of the last layer through them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from osaurusd import addresses
from osaurusd.errors import InsufficientMemory, InvalidRequest, OsaurusError, VersionMismatch
from osaurusd.groups.candidates import CandidateHost
from osaurusd.groups.facts import ModelFacts, Part
from osaurusd.groups.families import FAMILIES
from osaurusd.pool.memory import CACHE_FACTOR, FLOAT32_BYTES, ORDINARY_TOKENS, WEIGHTS_FACTOR
from osaurusd.wire.groups import MAX_RANKS
from osaurusd.wire.placement import PlacementInfo, PlannedRank, Split, SplitSetting, Versions
from osaurusd.wire.sizes import format_bytes

_SPLITS: tuple[Split, ...] = ("tensor", "pipeline")

# Precision of the search for the smallest share of memory that suffices.
_SEARCH_STEPS = 60


class RankPlan(msgspec.Struct, frozen=True):
    """One rank.

    Attributes:
        host: the name of the paired host; None for this one.
        layers: the numbers of its layers; None if it has a part of every layer.
        needs_bytes: minimum memory, for the weights and one request.
    """

    host: str | None
    layers: range | None
    needs_bytes: int


class Placement(msgspec.Struct, frozen=True):
    """Where the ranks of a model run.

    Attributes:
        ranks: by rank; the first one is the leader.
        float32: whether all ranks convert the weights to float32. They must not decide for themselves.
        reason: why this split, in one sentence.
        rdma_devices: what connects the hosts, by rank; empty for TCP.
    """

    split: Split
    ranks: tuple[RankPlan, ...]
    float32: bool
    reason: str
    rdma_devices: tuple[str, ...] = ()

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """The number of layers of each rank of a pipeline, by rank; empty for a tensor split."""
        return tuple(len(rank.layers) for rank in self.ranks if rank.layers is not None)

    def info(self, hosts: Sequence[str], split: SplitSetting) -> PlacementInfo:
        """Describe the placement that resulted from a request."""
        ranks = [
            PlannedRank(
                host=rank.host,
                needs_bytes=rank.needs_bytes,
                layers=(rank.layers[0], rank.layers[-1]) if rank.layers else None,
            )
            for rank in self.ranks
        ]
        return PlacementInfo(hosts=list(hosts), split=split, chosen=self.split, reason=self.reason, ranks=ranks)


def plan(
    model: ModelFacts,
    hosts: Sequence[CandidateHost],
    split: SplitSetting,
    dequantize: Literal["auto", "always", "never"] = "auto",
) -> Placement:
    """Plan the ranks of a model.

    Args:
        model: the shape of the model.
        hosts: the leader, then the others.
        split: the requested split; `auto` chooses.
        dequantize: whether a CPU computes in float32; `auto` does if that fits on all hosts.

    Raises:
        InvalidRequest: the model cannot be divided like this. `param` is `model`, `hosts` or `split`.
        VersionMismatch: the hosts have different versions.
        InsufficientMemory: the model does not fit.
    """
    check_model(model)
    _check_hosts(hosts)
    devices = tuple(host.rdma_device for host in hosts if host.backend == "jaccl" and host.rdma_device)
    return replace(_plan_dtype(model, hosts, split, dequantize), rdma_devices=devices)


def _plan_dtype(
    model: ModelFacts,
    hosts: Sequence[CandidateHost],
    split: SplitSetting,
    dequantize: Literal["auto", "always", "never"],
) -> Placement:
    on_cpu = any(host.device == "cpu" for host in hosts)
    if dequantize == "always" or (dequantize == "auto" and on_cpu):
        try:
            return _plan(model, hosts, split, float32=True)
        except InsufficientMemory:
            if dequantize == "always":
                raise
    return _plan(model, hosts, split, float32=False)


def _plan(model: ModelFacts, hosts: Sequence[CandidateHost], split: SplitSetting, *, float32: bool) -> Placement:
    if split != "auto":
        ranks = _plan_split(model, hosts, split, float32=float32)
        return Placement(split, ranks, float32, f"the split {split} was requested")
    first: Split = "tensor" if hosts[0].backend == "jaccl" else "pipeline"
    second: Split = "pipeline" if first == "tensor" else "tensor"
    try:
        ranks = _plan_split(model, hosts, first, float32=float32)
    except OsaurusError as refusal:
        try:
            ranks = _plan_split(model, hosts, second, float32=float32)
        except (InvalidRequest, InsufficientMemory) as error:
            raise _both_refused(refusal, error) from error
        return Placement(second, ranks, float32, f"{second}, because of {first}: {refusal.message}")
    return Placement(first, ranks, float32, _REASONS[first])


_REASONS: dict[Split, str] = {
    "tensor": "tensor, because RDMA is fast enough for the exchanges in every layer, and all hosts work on each token",
    "pipeline": "pipeline, because it exchanges least over the network",
}


def _both_refused(first: OsaurusError, second: OsaurusError) -> OsaurusError:
    """Return the error for a model that no split suits: lack of memory if that is all that is missing for one."""
    if isinstance(first, InsufficientMemory):
        return first
    if isinstance(second, InsufficientMemory):
        return second
    if first.message == second.message:
        return first
    return InvalidRequest(f"{first.message}; {second.message}", param="hosts")


# Refusals that concern the model and the hosts


def check_model(model: ModelFacts) -> None:
    """Check that a model can be divided at all.

    Raises:
        InvalidRequest: it cannot; `param` is `model`.
    """
    if model.task != "generate" or model.runner != "text":
        kind = "a vision model" if model.runner == "vision" else f"for the task `{model.task}`"
        raise InvalidRequest(
            f'model "{model.name}" is {kind}, and only models that generate text run over several hosts; load it '
            "without `hosts`",
            param="model",
        )
    if model.architecture not in FAMILIES:
        raise InvalidRequest(
            f'model "{model.name}" has the architecture `{model.architecture}`, which cannot be divided; supported: '
            f"{', '.join(sorted(FAMILIES))}",
            param="model",
        )
    if not model.layers or not model.layers[0].nbytes:
        raise InvalidRequest(
            f'model "{model.name}": the number of layers in config.json does not match the weights', param="model"
        )


def _check_hosts(hosts: Sequence[CandidateHost]) -> None:
    names = [host.name for host in hosts]
    if not 2 <= len(hosts) <= MAX_RANKS:
        raise InvalidRequest(f"`hosts` must name 1 to {MAX_RANKS - 1} other hosts", param="hosts")
    if len(set(names)) < len(names):
        raise InvalidRequest("`hosts` names a host twice", param="hosts")
    leader = hosts[0]
    for host in hosts[1:]:
        if host.backend != leader.backend:
            raise InvalidRequest(
                f"{label(host)} has the backend {host.backend}, and this host {leader.backend}; set "
                "the same `distributed.backend` on all hosts",
                param="hosts",
            )
        check_versions(leader.versions, host)
    for host in hosts:
        check_link_address(host)
    if leader.backend == "jaccl":
        _check_rdma(hosts)


def _check_rdma(hosts: Sequence[CandidateHost]) -> None:
    if len(hosts) > 2:
        raise InvalidRequest(
            'the backend jaccl connects two hosts; name one in `hosts`, or set `distributed.backend` to "ring" on all',
            param="hosts",
        )
    for host in hosts:
        if not host.rdma_device:
            raise InvalidRequest(
                f"{label(host)} has no RDMA device, or several; set `distributed.rdma_device` there to the one that is "
                'connected to the other host, or `distributed.backend` to "ring" on both',
                param="hosts",
            )


def check_versions(expected: Versions, host: CandidateHost) -> None:
    """Check that a host has the versions of this one: ranks of different versions compute different results.

    Raises:
        VersionMismatch: it does not.
    """
    for package in sorted(expected.keys() | host.versions.keys()):
        ours, theirs = expected.get(package), host.versions.get(package)
        if ours != theirs:
            raise VersionMismatch(
                f"{label(host)} has {package} {theirs or 'of an unknown version'}, and this host {ours or 'none'}; "
                "install the same versions on all hosts",
                param="hosts",
            )


def check_link_address(host: CandidateHost) -> None:
    """Check that the address for the ring is a private one: its sockets are neither encrypted nor authenticated.

    Raises:
        InvalidRequest: it is public, or unknown.
    """
    address = host.link_address or ""
    try:
        addresses.parse_private_address(address)
    except ValueError as error:
        raise InvalidRequest(
            f"the link address of {label(host)}, {address or 'which is not set'}, is not a private address (IPv4); set "
            "`distributed.link_address` there to its address on the network between the hosts",
            param="hosts",
        ) from error


def label(host: CandidateHost) -> str:
    """Return how messages name a host."""
    return "this host" if host.name is None else f'host "{host.name}"'


# One split


def _plan_split(
    model: ModelFacts, hosts: Sequence[CandidateHost], split: Split, *, float32: bool
) -> tuple[RankPlan, ...]:
    if split not in FAMILIES[model.architecture].splits:
        other = next(each for each in _SPLITS if each != split)
        raise InvalidRequest(
            f'the architecture `{model.architecture}` has no {split} split; set `split` to "{other}"', param="split"
        )
    if split == "tensor":
        return _plan_tensor(model, hosts, float32=float32)
    return _plan_pipeline(model, hosts, float32=float32)


def _plan_tensor(model: ModelFacts, hosts: Sequence[CandidateHost], *, float32: bool) -> tuple[RankPlan, ...]:
    count = len(hosts)
    _check_divisible(model, count)
    weights = sum(_bytes(layer, float32=float32) for layer in model.layers) / count
    cache = model.cache_bytes_per_token / (count if FAMILIES[model.architecture].divides_cache else 1)
    needs = _needs(model, weights + _bytes(model.shared, float32=float32), cache, float32=float32)
    return _checked(model, hosts, [None] * count, [needs] * count)


def _check_divisible(model: ModelFacts, count: int) -> None:
    counts = FAMILIES[model.architecture].counts
    for key, size in model.sizes.items():
        # The scales of quantized rows are divided as well.
        group = 1 if key in counts else model.group_size
        if size % (count * group):
            by = f"{count} hosts times the quantization's group size {group}" if group > 1 else f"{count} hosts"
            pipeline = "pipeline" in FAMILIES[model.architecture].splits
            remedy = 'set `split` to "pipeline", or use another number of `hosts`' if pipeline else "use another number"
            raise InvalidRequest(
                f"a tensor split needs `{key}` ({size}) to be divisible by {by}; {remedy}",
                param="split" if pipeline else "hosts",
            )


def _plan_pipeline(model: ModelFacts, hosts: Sequence[CandidateHost], *, float32: bool) -> tuple[RankPlan, ...]:
    layers = [_bytes(layer, float32=float32) for layer in model.layers]
    if len(layers) < len(hosts):
        raise InvalidRequest(
            f'model "{model.name}" has {len(layers)} layers, fewer than {len(hosts)} hosts; name fewer in `hosts`',
            param="hosts",
        )
    shared = _bytes(model.shared, float32=float32)
    cache = model.cache_bytes_per_token / len(layers)

    def needs(part: range) -> int:
        return _needs(model, sum(layers[part.start : part.stop]) + shared, cache * len(part), float32=float32)

    parts = _divide(len(layers), [max(host.memory_bytes, 1) for host in hosts], needs)
    return _checked(model, hosts, parts, [needs(part) for part in parts])


def _divide(count: int, memory: Sequence[int], needs: Callable[[range], int]) -> list[range]:
    """Divide layers over ranks so that the fullest one is as empty as possible, in relation to its memory.

    Args:
        count: the number of layers.
        memory: the memory of each rank; rank 0 gets the last layers.
        needs: returns the memory that a rank with these layers needs.

    Returns:
        The layers of each rank, by rank.
    """

    def fill(share: float) -> list[range] | None:
        """Give each rank as many layers as fit into this share of its memory; None if some remain."""
        parts: list[range] = []
        begin = 0
        for rank in reversed(range(len(memory))):
            # At least one layer for this rank, and for each rank that follows.
            last, end = count - rank, begin + 1
            while end < last and needs(range(begin, end + 1)) <= share * memory[rank]:
                end += 1
            if needs(range(begin, end)) > share * memory[rank]:
                return None
            parts.append(range(begin, end))
            begin = end
        return parts[::-1] if begin == count else None

    low, high = 0.0, max(needs(range(count)) / nbytes for nbytes in memory)
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fill(middle) else (middle, high)
    parts = fill(high)
    assert parts is not None, "every rank has room for all layers"
    return parts


def _checked(
    model: ModelFacts, hosts: Sequence[CandidateHost], parts: Sequence[range | None], needs: Sequence[int]
) -> tuple[RankPlan, ...]:
    """Return the ranks if each has enough memory."""
    if any(needed > host.memory_bytes for host, needed in zip(hosts, needs, strict=True)):
        listed = ", ".join(
            f"{label(host)} needs {format_bytes(needed)} and has {format_bytes(host.memory_bytes)}"
            for host, needed in zip(hosts, needs, strict=True)
        )
        raise InsufficientMemory(
            f'model "{model.name}" does not fit on the hosts: {listed}; add a host to `hosts`, free memory, or raise '
            "`distributed.lend_bytes` there",
            param="hosts",
        )
    return tuple(RankPlan(host.name, part, needed) for host, part, needed in zip(hosts, parts, needs, strict=True))


def _bytes(part: Part, *, float32: bool) -> int:
    return max(part.parameters * FLOAT32_BYTES, part.nbytes) if float32 else part.nbytes


def _needs(model: ModelFacts, weights: float, cache_per_token: float, *, float32: bool) -> int:
    """Return the minimum memory of a rank; see `pool.memory.estimate_bytes`."""
    tokens = min(model.context_length or ORDINARY_TOKENS, ORDINARY_TOKENS)
    cache = cache_per_token * tokens * (2 if float32 else 1)
    return int(weights * WEIGHTS_FACTOR + cache * CACHE_FACTOR)
