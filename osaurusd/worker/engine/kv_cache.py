"""KV caches: their layout and size, and copying token ranges out of them and back.

mlx_lm gives every layer its own cache object. A `KVCache` holds one key and value per token, so any range of tokens can
be copied out and restored: such a cache is *sliceable*. All other kinds (sliding windows, recurrent states, chunked
attention) are *states*: they summarize everything up to one position and can only be copied as a whole.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

# `KVCache` and `BatchKVCache` allocate this many tokens at a time.
GROWTH_TOKENS: int = KVCache.step

Cache = list[Any]
"""One cache object per layer, as mlx_lm creates them."""

PackedKV = list[mx.array]
"""A token range of all sliceable caches: per group, one array [members, heads, tokens, head dimension]."""

_Groups = tuple[tuple[tuple[int, int], ...], ...]


class GroupedMaskCache(BatchKVCache):  # type: ignore[misc]
    """A batched cache for models that reshape query heads to [KV heads, group], such as gemma2 in mlx_lm.

    Their attention scores have five axes, so the per-row mask needs a fifth axis as well.
    """

    def make_mask(self, *args: Any, **kwargs: Any) -> mx.array:
        """Return a mask [rows, 1, 1, tokens, keys]."""
        mask: mx.array = super().make_mask(*args, **kwargs)
        return mask[:, :, None]

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> "GroupedMaskCache":
        merged = super().merge(caches)
        # The base class returns its own type if all caches are empty.
        return merged if isinstance(merged, cls) else cls([0] * len(caches))


@dataclass(frozen=True)
class Window:
    """A layer that keeps the last `tokens` tokens, at `bytes_per_token` each."""

    tokens: int
    bytes_per_token: int


@dataclass(frozen=True)
class CacheLayout:
    """The kinds and sizes of a model's caches, measured on a cache that one forward pass has filled.

    Attributes:
        groups: arrays of equal shape and precision that are packed into one array. Each is identified by the number of
            its sliceable cache and 0 for keys, 1 for values.
        bytes_per_token: size of all sliceable caches together.
        windows: the sliding windows.
        constant_bytes: states that do not grow with the sequence.
        has_states: whether some layers are not sliceable.
        batchable: whether sequences can share a forward pass.
        grouped_masks: whether batches need `GroupedMaskCache`.
    """

    groups: _Groups
    bytes_per_token: int
    windows: tuple[Window, ...]
    constant_bytes: int
    has_states: bool
    batchable: bool
    grouped_masks: bool = False

    @classmethod
    def from_cache(cls, cache: Cache) -> "CacheLayout":
        """Measure `cache`, which must hold at least one token."""
        leaves = list(_leaves(cache))
        sliceable = [leaf for leaf in leaves if _is_sliceable(leaf)]
        states = [leaf for leaf in leaves if not _is_sliceable(leaf)]
        rotating = [leaf for leaf in states if isinstance(leaf, RotatingKVCache)]
        return cls(
            groups=_groups(sliceable),
            bytes_per_token=sum(_bytes_per_token(leaf) for leaf in sliceable),
            windows=tuple(Window(leaf.max_size, _bytes_per_token(leaf)) for leaf in rotating),
            constant_bytes=sum(int(leaf.nbytes) for leaf in states if leaf not in rotating and not leaf.empty()),
            has_states=bool(states),
            batchable=all(hasattr(layer, "merge") for layer in cache),
        )

    def merge(self, caches: Sequence[Cache]) -> Cache:
        """Merge the caches of several sequences into one, padding each on the left to the longest."""
        return [self._merge_layer(layers) for layers in zip(*caches, strict=True)]

    def bytes_for(self, sequences: int, tokens: int) -> int:
        """Return the bytes of a batch of `sequences` sequences that are all padded to `tokens` tokens."""
        allocated: int = -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
        windows = sum(min(allocated, window.tokens) * window.bytes_per_token for window in self.windows)
        return int(sequences * (allocated * self.bytes_per_token + windows + self.constant_bytes))

    def _merge_layer(self, layers: tuple[Any, ...]) -> Any:
        kind = GroupedMaskCache if self.grouped_masks and _is_sliceable(layers[0]) else layers[0]
        return kind.merge(list(layers))


def pack(layout: CacheLayout, cache: Cache, start: int, end: int) -> PackedKV:
    """Copy the tokens from `start` to `end` out of the sliceable caches of one sequence."""
    sliceable = [leaf for leaf in _leaves(cache) if _is_sliceable(leaf)]
    return _pack(layout, [(leaf.keys[..., start:end, :], leaf.values[..., start:end, :]) for leaf in sliceable])


def pack_row(layout: CacheLayout, batch: Cache, row: int, length: int, start: int, end: int) -> PackedKV:
    """Copy the tokens from `start` to `end` of the sequence in `row` of a merged cache, which has `length` tokens."""
    arrays = []
    for leaf in (leaf for leaf in _leaves(batch) if _is_batched_sliceable(leaf)):
        padding = leaf.size() - length
        tokens = slice(padding + start, padding + end)
        arrays.append((leaf.keys[row : row + 1, :, tokens], leaf.values[row : row + 1, :, tokens]))
    return _pack(layout, arrays)


def restore(
    layout: CacheLayout, network: Any, blocks: Sequence[PackedKV], length: int, states: list[Any] | None
) -> Cache:
    """Build the cache of one sequence from the first `length` tokens of `blocks`, and `states` copied at that point."""
    cache: Cache = make_prompt_cache(network)
    if blocks and layout.groups:
        _unpack(layout, [leaf for leaf in _leaves(cache) if _is_sliceable(leaf)], blocks, length)
    if states is not None:
        _restore_states(cache, iter(states))
    return cache


def copy_states(cache: Cache) -> list[Any]:
    """Copy all states of one sequence, in layer order."""
    return [_compact(copy.deepcopy(leaf)) for leaf in _leaves(cache) if not _is_sliceable(leaf)]


def copy_row_states(batch: Cache, row: int) -> list[Any]:
    """Copy all states of the sequence in `row` of a merged cache, in layer order."""
    return [_compact(leaf.extract(row)) for leaf in _leaves(batch) if not _is_batched_sliceable(leaf)]


def extract_row(batch: Cache, row: int) -> Cache:
    """Copy the sequence in `row` of a merged cache into a cache for a single sequence."""
    return [layer.extract(row) for layer in batch]


def head_dimensions(cache: Cache) -> set[tuple[int, int]]:
    """Return the dimensions of keys and values that occur in a filled cache; recurrent states have none."""
    leaves = [leaf for leaf in _leaves(cache) if isinstance(getattr(leaf, "keys", None), mx.array)]
    return {(leaf.keys.shape[-1], leaf.values.shape[-1]) for leaf in leaves}


def _leaves(cache: Iterable[Any]) -> Iterator[Any]:
    """Yield the cache objects that hold arrays; some models have several per layer."""
    for entry in cache:
        if isinstance(entry, CacheList):
            yield from _leaves(entry.caches)
        else:
            yield entry


def _is_sliceable(leaf: Any) -> bool:
    # Exact types here and below: a subclass may hold more than keys and values.
    return type(leaf) is KVCache


def _is_batched_sliceable(leaf: Any) -> bool:
    return type(leaf) in (BatchKVCache, GroupedMaskCache)


def _compact(leaf: Any) -> Any:
    """Copy the leaf's arrays: a view would keep the whole array that it is a slice of in memory."""
    leaf.state = tree_map(lambda part: mx.array(part) if isinstance(part, mx.array) else part, leaf.state)
    mx.async_eval(leaf.state)  # type: ignore[no-untyped-call]
    return leaf


def _bytes_per_token(leaf: Any) -> int:
    return sum(int(array.shape[1] * array.shape[3] * array.dtype.size) for array in (leaf.keys, leaf.values))


def _groups(sliceable: list[Any]) -> _Groups:
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number, leaf in enumerate(sliceable):
        for which, array in enumerate((leaf.keys, leaf.values)):
            groups.setdefault((array.shape[1], array.shape[3], str(array.dtype)), []).append((number, which))
    return tuple(tuple(group) for group in groups.values())


def _pack(layout: CacheLayout, arrays: list[tuple[mx.array, mx.array]]) -> PackedKV:
    # Concatenating a single array returns a view of it, hence `contiguous`.
    packed = [
        mx.contiguous(mx.concatenate([arrays[number][which] for number, which in group])) for group in layout.groups
    ]
    mx.async_eval(packed)  # type: ignore[no-untyped-call]
    return packed


def _unpack(layout: CacheLayout, sliceable: list[Any], blocks: Sequence[PackedKV], length: int) -> None:
    """Fill empty caches, leaving room to grow so that the next tokens do not copy everything again."""
    room = GROWTH_TOKENS - length % GROWTH_TOKENS + GROWTH_TOKENS
    arrays: dict[tuple[int, int], mx.array] = {}
    for index, group in enumerate(layout.groups):
        _, heads, _, dimensions = blocks[0][index].shape
        zeros = mx.zeros((1, heads, room, dimensions), blocks[0][index].dtype)
        for position, member in enumerate(group):
            parts = [block[index][position : position + 1] for block in blocks]
            surplus = sum(part.shape[2] for part in parts) - length
            if surplus:
                parts[-1] = parts[-1][:, :, :-surplus]
            arrays[member] = mx.concatenate([*parts, zeros], axis=2)
    for number, leaf in enumerate(sliceable):
        leaf.keys, leaf.values, leaf.offset = arrays[number, 0], arrays[number, 1], length


def _restore_states(cache: Cache, states: Iterator[Any]) -> None:
    for index, entry in enumerate(cache):
        if isinstance(entry, CacheList):
            inner = list(entry.caches)
            _restore_states(inner, states)
            entry.caches = tuple(inner)
        elif not _is_sliceable(entry):
            cache[index] = copy.deepcopy(next(states))
