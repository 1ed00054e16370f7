"""The prefix cache: an index of earlier sequences by their first tokens.

A tree of blocks of up to `BLOCK_TOKENS` tokens. Sequences with a common prefix share the blocks of that prefix, and a
block's path in the tree identifies everything before it. For models with layers that cannot be sliced at any token,
*checkpoints* hold the states of those layers at one position, and a sequence can be resumed only at a checkpoint.

Using a block marks it and its ancestors as recently used, ancestors last. So the least recently used entry is always
at the end of a branch, and evicting it leaves no unreachable blocks.

The index only stores what it is given: this module does not use MLX.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK_TOKENS = 256

# Bookkeeping per block besides its arrays: the object, its LRU entry, its entry in the parent.
_BLOCK_BYTES = 700

Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]

PackedBlock = list[Any]
"""Arrays with the keys and values of a token range; see `kv_cache.PackedKV`."""


@dataclass(eq=False)
class Block:
    """Consecutive tokens, as the bytes of int32, and the keys and values of the sliceable layers."""

    parent: "Block | None"
    key: bytes
    data: PackedBlock
    children: dict[bytes, "Block"] = field(default_factory=dict)
    checkpoints: dict[int, "Checkpoint"] = field(default_factory=dict)

    @property
    def tokens(self) -> Tokens:
        return np.frombuffer(self.key, np.int32)

    @property
    def count(self) -> int:
        return len(self.key) // 4

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.data) + len(self.key) + _BLOCK_BYTES


@dataclass(eq=False)
class Checkpoint:
    """The states of the other layers after `offset` tokens of `block`."""

    block: Block
    offset: int
    states: list[Any]

    @property
    def nbytes(self) -> int:
        return sum(int(state.nbytes) for state in self.states) + _BLOCK_BYTES


@dataclass(frozen=True)
class PrefixMatch:
    """The result of a lookup.

    Attributes:
        length: how many tokens can be restored.
        shared: how many tokens are equal to those of an earlier sequence; at least `length`.
        blocks: what to restore; together they hold at least `length` tokens.
        states: the states at `length`, for models that have some.
    """

    length: int
    shared: int
    blocks: list[PackedBlock]
    states: list[Any] | None


class PrefixCache:
    """The index. Every call takes time proportional to the number of blocks of one sequence.

    Args:
        max_bytes: limit of everything that is stored; 0 disables the cache.
        has_states: whether the model has layers that cannot be sliced at any token.
    """

    def __init__(self, max_bytes: int, *, has_states: bool) -> None:
        self._max_bytes = max_bytes
        self._cap = max_bytes
        self._has_states = has_states
        self._root = Block(None, b"", [])
        self._lru: OrderedDict[Block | Checkpoint, None] = OrderedDict()
        self.nbytes = 0

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    def find(self, tokens: Tokens, limit: int) -> PrefixMatch:
        """Return the longest stored prefix of `tokens`, of at most `limit` tokens."""
        path = list(self._walk(tokens))
        shared = sum(used for _, used in path)
        self._touch(block for block, _ in path)
        if not self._has_states:
            length = min(shared, limit)
            return PrefixMatch(length, shared, _covering(path, length), None)
        usable = [(start, entry) for start, entry in self._checkpoints(tokens) if start + entry.offset <= limit]
        if not usable:
            return PrefixMatch(0, shared, [], None)
        start, entry = max(usable, key=lambda pair: pair[0] + pair[1].offset)
        path = [*path[: start // BLOCK_TOKENS], (entry.block, entry.offset)]
        self._lru.move_to_end(entry)
        self._touch(block for block, _ in path)
        length = start + entry.offset
        return PrefixMatch(length, shared, _covering(path, length), entry.states)

    def insert(self, tokens: Tokens, read: Callable[[int, int], PackedBlock]) -> None:
        """Store a sequence; `read(start, end)` copies a token range that is not stored yet."""
        if not self.enabled:
            return
        block, position = self._root, 0
        path: list[Block] = []
        while position < len(tokens):
            part = tokens[position : position + BLOCK_TOKENS]
            block, exact = self._child(block, part, position, read)
            path.append(block)
            if not exact:
                break
            position += len(part)
        self._touch(path)
        self._evict_to(self._cap)

    def insert_checkpoint(self, tokens: Tokens, states: list[Any]) -> None:
        """Store the states after all of `tokens`, which must have been inserted."""
        path = list(self._walk(tokens))
        if not path or sum(used for _, used in path) < len(tokens):
            return
        block, offset = path[-1]
        if offset not in block.checkpoints:
            block.checkpoints[offset] = Checkpoint(block, offset, states)
            self._add(block.checkpoints[offset])
        self._lru.move_to_end(block.checkpoints[offset])
        self._touch(block for block, _ in path)
        self._evict_to(self._cap)

    def set_cap(self, nbytes: int) -> None:
        """Limit the cache to `nbytes`, or to its configured maximum if that is lower, evicting entries as needed."""
        self._cap = min(self._max_bytes, nbytes)
        self._evict_to(self._cap)

    def resize(self, max_bytes: int) -> None:
        """Change the configured maximum, evicting entries as needed."""
        self._max_bytes = max_bytes
        self.set_cap(max_bytes)

    def clear(self) -> None:
        self._evict_to(0)

    def _walk(self, tokens: Tokens) -> Iterator[tuple[Block, int]]:
        """Yield the blocks along `tokens`, and how many tokens of each are equal."""
        block, position = self._root, 0
        while position < len(tokens):
            part = tokens[position : position + BLOCK_TOKENS]
            child = block.children.get(part.tobytes())
            used = len(part)
            if child is None:
                child, used = _longest_common_prefix(block.children.values(), part)
                if child is None:
                    return
            yield child, used
            if used < BLOCK_TOKENS:
                return
            block, position = child, position + used

    def _child(
        self, block: Block, part: Tokens, position: int, read: Callable[[int, int], PackedBlock]
    ) -> tuple[Block, bool]:
        """Return the child of `block` that holds `part`, created if needed, and whether it holds nothing more."""
        key = part.tobytes()
        if child := block.children.get(key):
            return child, True
        for child in block.children.values():
            if child.key.startswith(key):
                return child, False
        new = Block(block, key, read(position, position + len(part)))
        for child in [child for child in block.children.values() if key.startswith(child.key)]:
            self._replace(child, new)
        block.children[key] = new
        self._add(new)
        return new, True

    def _replace(self, old: Block, new: Block) -> None:
        """Replace a partial block by a longer one with the same beginning."""
        for offset, checkpoint in old.checkpoints.items():
            checkpoint.block = new
            new.checkpoints[offset] = checkpoint
        old.checkpoints = {}
        self._drop(old)

    def _checkpoints(self, tokens: Tokens) -> Iterator[tuple[int, Checkpoint]]:
        """Yield the checkpoints within `tokens`, each with the position at which its block starts.

        They may belong to siblings of the blocks with the longest common prefix.
        """
        block, position = self._root, 0
        while position < len(tokens):
            part = tokens[position : position + BLOCK_TOKENS]
            for child in block.children.values():
                for offset, checkpoint in child.checkpoints.items():
                    if child.key.startswith(part[:offset].tobytes()) and offset <= len(part):
                        yield position, checkpoint
            following = block.children.get(part.tobytes())
            if following is None:
                return
            block, position = following, position + len(part)

    def _touch(self, path: Iterable[Block]) -> None:
        for block in reversed(list(path)):
            self._lru.move_to_end(block)

    def _add(self, entry: Block | Checkpoint) -> None:
        self._lru[entry] = None
        self.nbytes += entry.nbytes

    def _drop(self, entry: Block | Checkpoint) -> None:
        del self._lru[entry]
        self.nbytes -= entry.nbytes
        if isinstance(entry, Checkpoint):
            del entry.block.checkpoints[entry.offset]
        elif entry.parent is not None:
            del entry.parent.children[entry.key]

    def _evict_to(self, nbytes: int) -> None:
        while self._lru and self.nbytes > nbytes:
            self._drop(next(iter(self._lru)))


def common_prefix_length(one: Tokens, other: Tokens) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _covering(path: list[tuple[Block, int]], length: int) -> list[PackedBlock]:
    """Return the data of the first blocks of `path` that together hold `length` tokens."""
    blocks, covered = [], 0
    for block, _ in path:
        if covered >= length:
            break
        blocks.append(block.data)
        covered += block.count
    return blocks


def _longest_common_prefix(children: Iterable[Block], part: Tokens) -> tuple[Block | None, int]:
    """Return the child with the longest common prefix with `part`, and the length of that prefix."""
    best: Block | None = None
    longest = 0
    for child in children:
        length = common_prefix_length(child.tokens, part)
        if length > longest:
            best, longest = child, length
    return best, longest
