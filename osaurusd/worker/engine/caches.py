"""What a model's caches are made of: which parts can be cut at any token, what they weigh, how they are kept.

mlx_lm gives every layer a cache object of its own. A `KVCache` holds keys and values token by token, so any range of it
can be copied out and put back. All other kinds (sliding windows, recurrent states, chunks) are states: they stand for
everything up to one position and can only be kept whole.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

# `KVCache` and its batched twin grow by this many tokens at a time.
GROWTH_TOKENS: int = KVCache.step

Cache = list[Any]
"""One cache object a layer, as mlx_lm makes them."""

Packed = list[mx.array]
"""A range of tokens of all sliceable layers: one array [arrays, heads, tokens, dimensions] a group of like arrays."""


def leaves(cache: Iterable[Any]) -> Iterator[Any]:
    """The cache objects that hold arrays; some models have several a layer."""
    for entry in cache:
        if isinstance(entry, CacheList):
            yield from leaves(entry.caches)
        else:
            yield entry


def can_batch(cache: Cache) -> bool:
    """Whether mlx_lm can merge caches of this model's kind."""
    return all(hasattr(layer, "merge") for layer in cache)


class GroupedMaskCache(BatchKVCache):  # type: ignore[misc]
    """A batch for models that give the query heads of one KV head an axis of their own, as gemma2 does in mlx_lm.

    Their attention scores have five axes, so the mask, which differs from row to row, needs as many.
    """

    def make_mask(self, *args: Any, **kwargs: Any) -> mx.array:
        """A mask [rows, 1, 1, tokens, keys]."""
        mask: mx.array = super().make_mask(*args, **kwargs)
        return mask[:, :, None]

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> "GroupedMaskCache":
        """Merge as the base class does."""
        merged = super().merge(caches)
        return merged if isinstance(merged, cls) else cls([0] * len(caches))


@dataclass(frozen=True)
class Window:
    """A layer that keeps the last `tokens` tokens, at `bytes_per_token` each."""

    tokens: int
    bytes_per_token: int


@dataclass(frozen=True)
class Layout:
    """The kinds and weights of a model's caches, read off a cache that one forward pass has filled.

    `groups` lists arrays of one shape and precision that are packed together: pairs of a sliceable leaf's number and 0
    for its keys, 1 for its values. `bytes_per_token` is of the sliceable layers; `constant_bytes` do not grow.
    `grouped_masks`: merged caches must be `GroupedMaskCache`.
    """

    groups: tuple[tuple[tuple[int, int], ...], ...]
    bytes_per_token: int
    windows: tuple[Window, ...]
    constant_bytes: int
    has_states: bool
    batchable: bool
    grouped_masks: bool = False

    @classmethod
    def of(cls, cache: Cache) -> "Layout":
        """Read the layout off `cache`, which holds at least one token."""
        everything = list(leaves(cache))
        sliceable = [leaf for leaf in everything if _is_sliceable(leaf)]
        states = [leaf for leaf in everything if not _is_sliceable(leaf)]
        rotating = [leaf for leaf in states if isinstance(leaf, RotatingKVCache)]
        return cls(
            groups=_groups(sliceable),
            bytes_per_token=sum(_bytes_per_token(leaf) for leaf in sliceable),
            windows=tuple(Window(leaf.max_size, _bytes_per_token(leaf)) for leaf in rotating),
            constant_bytes=sum(int(leaf.nbytes) for leaf in states if leaf not in rotating and not leaf.empty()),
            has_states=bool(states),
            batchable=can_batch(cache),
        )

    def merge(self, joining: Sequence[Cache]) -> Cache:
        """One cache of several sequences, each padded on the left to the longest."""
        return [self._merge_layer(layers) for layers in zip(*joining, strict=True)]

    def _merge_layer(self, layers: tuple[Any, ...]) -> Any:
        kind = GroupedMaskCache if self.grouped_masks and _is_sliceable(layers[0]) else layers[0]
        return kind.merge(list(layers))

    def bytes_for(self, sequences: int, longest: int) -> int:
        """Bytes of a batch of `sequences` sequences, all padded to the longest one's `longest` tokens."""
        tokens: int = -(-longest // GROWTH_TOKENS) * GROWTH_TOKENS
        windows = sum(min(tokens, window.tokens) * window.bytes_per_token for window in self.windows)
        return int(sequences * (tokens * self.bytes_per_token + windows + self.constant_bytes))


def pack(layout: Layout, cache: Cache, start: int, end: int) -> Packed:
    """Copy the tokens from `start` to `end` of the sliceable layers of one sequence's cache."""
    sliceable = [leaf for leaf in leaves(cache) if _is_sliceable(leaf)]
    return _pack(layout, [(leaf.keys[..., start:end, :], leaf.values[..., start:end, :]) for leaf in sliceable])


def pack_row(layout: Layout, batch: Cache, row: int, length: int, start: int, end: int) -> Packed:
    """The same for sequence `row` of a merged cache, of which `length` tokens are in it."""
    parts = []
    for leaf in (leaf for leaf in leaves(batch) if _is_batched_sliceable(leaf)):
        padding = leaf._idx - length
        cut = slice(padding + start, padding + end)
        parts.append((leaf.keys[row : row + 1, :, cut], leaf.values[row : row + 1, :, cut]))
    return _pack(layout, parts)


def restore(layout: Layout, network: Any, blocks: Sequence[Packed], length: int, states: list[Any] | None) -> Cache:
    """A cache of one sequence that holds the first `length` tokens of `blocks`, and the `states` kept for them."""
    cache: Cache = make_prompt_cache(network)
    everything = list(leaves(cache))
    if blocks and layout.groups:
        _unpack(layout, [leaf for leaf in everything if _is_sliceable(leaf)], blocks, length)
    if states is not None:
        _put_states(cache, iter(states))
    return cache


def keep_states(cache: Cache) -> list[Any]:
    """Copies of all leaves that are states, in order."""
    return [_compact(copy.deepcopy(leaf)) for leaf in leaves(cache) if not _is_sliceable(leaf)]


def keep_states_of_row(batch: Cache, row: int) -> list[Any]:
    """The same for sequence `row` of a merged cache."""
    return [_compact(leaf.extract(row)) for leaf in leaves(batch) if not _is_batched_sliceable(leaf)]


def extract(batch: Cache, row: int) -> Cache:
    """The cache of one sequence of a batch, as a copy."""
    return [layer.extract(row) for layer in batch]


def _is_sliceable(leaf: Any) -> bool:
    # Exactly: a subclass may keep more than keys and values.
    return type(leaf) is KVCache


def _is_batched_sliceable(leaf: Any) -> bool:
    return type(leaf) in (BatchKVCache, GroupedMaskCache)


def _compact(leaf: Any) -> Any:
    """The leaf with arrays of its own: a view would keep all that it was cut from in memory."""
    leaf.state = tree_map(lambda part: mx.array(part) if isinstance(part, mx.array) else part, leaf.state)
    mx.async_eval(leaf.state)  # type: ignore[no-untyped-call]
    return leaf


def _bytes_per_token(leaf: Any) -> int:
    return sum(int(a.shape[1] * a.shape[3] * a.dtype.size) for a in (leaf.keys, leaf.values))


def _groups(sliceable: list[Any]) -> tuple[tuple[tuple[int, int], ...], ...]:
    found: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number, leaf in enumerate(sliceable):
        for which, array in enumerate((leaf.keys, leaf.values)):
            found.setdefault((array.shape[1], array.shape[3], str(array.dtype)), []).append((number, which))
    return tuple(tuple(group) for group in found.values())


def _pack(layout: Layout, parts: list[tuple[mx.array, mx.array]]) -> Packed:
    # A group of one is not copied by joining it.
    return [mx.contiguous(mx.concatenate([parts[at][which] for at, which in group])) for group in layout.groups]


def _unpack(layout: Layout, sliceable: list[Any], blocks: Sequence[Packed], length: int) -> None:
    """Fill empty leaves, with room to grow, so that the next tokens do not copy everything once more."""
    room = GROWTH_TOKENS - length % GROWTH_TOKENS + GROWTH_TOKENS
    arrays: dict[tuple[int, int], mx.array] = {}
    for at, group in enumerate(layout.groups):
        _, heads, _, dimensions = blocks[0][at].shape
        zeros = mx.zeros((1, heads, room, dimensions), blocks[0][at].dtype)
        for place, which in enumerate(group):
            parts = [block[at][place : place + 1] for block in blocks]
            surplus = sum(part.shape[2] for part in parts) - length
            if surplus:
                parts[-1] = parts[-1][:, :, :-surplus]
            arrays[which] = mx.concatenate([*parts, zeros], axis=2)
    for number, leaf in enumerate(sliceable):
        leaf.keys, leaf.values, leaf.offset = arrays[number, 0], arrays[number, 1], length


def _put_states(cache: Cache, states: Iterator[Any]) -> None:
    for at, entry in enumerate(cache):
        if isinstance(entry, CacheList):
            inner = list(entry.caches)
            _put_states(inner, states)
            entry.caches = tuple(inner)
        elif not _is_sliceable(entry):
            cache[at] = copy.deepcopy(next(states))
