"""What is kept of earlier sequences, to be found again by their first tokens.

A tree of blocks of up to `BLOCK_TOKENS` tokens: sequences that begin alike share the blocks of their beginning, and a
block's place in the tree says what comes before it. Where a model has layers that cannot be cut at any token, states
are kept beside the blocks, each for one position, and a sequence can go on only from there.

Every use makes a block and all before it the most recently used, the beginning last: so what is least recently used is
always at the end of a branch, and can go without leaving anything behind that cannot be reached.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine.caches import Packed

BLOCK_TOKENS = 256

# What a block costs besides its arrays: the object, its place in the order, its entry with its parent.
_BLOCK_BYTES = 700

Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(eq=False)
class Block:
    """Tokens in sequence, as the bytes of int32, and what the sliceable layers hold for them."""

    parent: "Block | None"
    key: bytes
    data: Packed
    children: dict[bytes, "Block"] = field(default_factory=dict)
    states: dict[int, "State"] = field(default_factory=dict)

    @property
    def tokens(self) -> Tokens:
        return np.frombuffer(self.key, np.int32)

    @property
    def count(self) -> int:
        return len(self.key) // 4

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.data) + len(self.key) + _BLOCK_BYTES


@dataclass(eq=False)
class State:
    """What the other layers hold after `offset` tokens of `block`."""

    block: Block
    offset: int
    leaves: list[Any]

    @property
    def nbytes(self) -> int:
        return sum(int(leaf.nbytes) for leaf in self.leaves) + _BLOCK_BYTES


@dataclass(frozen=True)
class Match:
    """What was found for a prompt.

    `length` tokens can be taken over from `blocks`, with `states` where the model has such layers. `shared` tokens,
    that many or more, are the same as those of an earlier sequence.
    """

    length: int
    shared: int
    blocks: list[Packed]
    states: list[Any] | None


class PrefixCache:
    """The index. Belongs to the thread that owns MLX; no call takes longer than a walk along one sequence's blocks.

    Args:
        max_bytes: of all that is kept; 0 keeps nothing.
        has_states: whether the model has layers that cannot be cut at any token.
    """

    def __init__(self, max_bytes: int, *, has_states: bool) -> None:
        self._max_bytes = max_bytes
        self._cap = max_bytes
        self._has_states = has_states
        self._root = Block(None, b"", [])
        self._order: OrderedDict[Block | State, None] = OrderedDict()
        self.nbytes = 0

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    def find(self, tokens: Tokens, limit: int) -> Match:
        """The longest beginning of `tokens` that is here, no longer than `limit` tokens."""
        path = list(self._walk(tokens))
        shared = sum(used for _, used in path)
        self._touch(block for block, _ in path)
        if not self._has_states:
            return self._match(path, min(shared, limit), shared, None)
        usable = [(before, state) for before, state in self._states(tokens) if before + state.offset <= limit]
        if not usable:
            return Match(0, shared, [], None)
        before, state = max(usable, key=lambda pair: pair[0] + pair[1].offset)
        way = [*path[: before // BLOCK_TOKENS], (state.block, state.offset)]
        self._order.move_to_end(state)
        self._touch(block for block, _ in way)
        return self._match(way, before + state.offset, shared, state.leaves)

    def insert(self, tokens: Tokens, read: Callable[[int, int], Packed]) -> None:
        """Keep a whole sequence; `read(start, end)` copies out what is not here yet."""
        if not self.enabled:
            return
        block, at = self._root, 0
        path: list[Block] = []
        while at < len(tokens):
            part = tokens[at : at + BLOCK_TOKENS]
            block, held = self._descend(block, part, at, read)
            path.append(block)
            if not held:
                break
            at += len(part)
        self._touch(path)
        self._shrink_to(self._cap)

    def insert_state(self, tokens: Tokens, leaves: list[Any]) -> None:
        """Keep the other layers' state after all of `tokens`, which have been inserted."""
        path = list(self._walk(tokens))
        if not path or sum(used for _, used in path) < len(tokens):
            return
        block, offset = path[-1]
        if offset not in block.states:
            state = block.states[offset] = State(block, offset, leaves)
            self._add(state)
        self._order.move_to_end(block.states[offset])
        self._touch(block for block, _ in path)
        self._shrink_to(self._cap)

    def cap(self, nbytes: int) -> None:
        """Keep no more than `nbytes` from now on, though never more than at first; the least recently used goes."""
        self._cap = min(self._max_bytes, nbytes)
        self._shrink_to(self._cap)

    def resize(self, max_bytes: int) -> None:
        """Keep no more than this from now on; what was used least recently goes."""
        self._max_bytes = max_bytes
        self.cap(max_bytes)

    def clear(self) -> None:
        """Drop everything."""
        self._shrink_to(0)

    def _match(self, path: list[tuple[Block, int]], length: int, shared: int, states: list[Any] | None) -> Match:
        blocks, covered = [], 0
        for block, _ in path:
            if covered >= length:
                break
            blocks.append(block.data)
            covered += block.count
        return Match(length, shared, blocks, states)

    def _walk(self, tokens: Tokens) -> Iterator[tuple[Block, int]]:
        """The blocks that `tokens` begin with, and how many tokens of each are the same."""
        block, at = self._root, 0
        while at < len(tokens):
            part = tokens[at : at + BLOCK_TOKENS]
            child = block.children.get(part.tobytes())
            used = len(part)
            if child is None:
                child, used = _most_alike(block.children.values(), part)
                if child is None:
                    return
            yield child, used
            if used < BLOCK_TOKENS:
                return
            block, at = child, at + used

    def _descend(self, block: Block, part: Tokens, at: int, read: Callable[[int, int], Packed]) -> tuple[Block, bool]:
        """The child of `block` that holds `part`, made if need be, and whether it ends with it."""
        key = part.tobytes()
        if child := block.children.get(key):
            return child, True
        for child in block.children.values():
            if child.key.startswith(key):
                return child, False
        made = Block(block, key, read(at, at + len(part)))
        mx.async_eval(made.data)  # type: ignore[no-untyped-call]
        for child in [child for child in block.children.values() if key.startswith(child.key)]:
            self._supersede(child, made)
        block.children[key] = made
        self._add(made)
        return made, True

    def _supersede(self, old: Block, new: Block) -> None:
        """A block that was not full gives way to one that begins with it."""
        for offset, state in old.states.items():
            state.block = new
            new.states[offset] = state
        old.states = {}
        self._drop(old)

    def _states(self, tokens: Tokens) -> Iterator[tuple[int, State]]:
        """The states within what `tokens` begin with, each with the tokens before its block.

        They may be in blocks beside those that are most alike.
        """
        block, before = self._root, 0
        while before < len(tokens):
            part = tokens[before : before + BLOCK_TOKENS]
            for child in block.children.values():
                for offset, state in child.states.items():
                    if child.key.startswith(part[:offset].tobytes()) and offset <= len(part):
                        yield before, state
            following = block.children.get(part.tobytes())
            if following is None:
                return
            block, before = following, before + len(part)

    def _touch(self, path: Iterable[Block]) -> None:
        for block in reversed(list(path)):
            self._order.move_to_end(block)

    def _add(self, entry: Block | State) -> None:
        self._order[entry] = None
        self.nbytes += entry.nbytes

    def _drop(self, entry: Block | State) -> None:
        del self._order[entry]
        self.nbytes -= entry.nbytes
        if isinstance(entry, State):
            del entry.block.states[entry.offset]
        elif entry.parent is not None:
            del entry.parent.children[entry.key]

    def _shrink_to(self, nbytes: int) -> None:
        while self._order and self.nbytes > nbytes:
            self._drop(next(iter(self._order)))


def _most_alike(children: Iterable[Block], part: Tokens) -> tuple[Block | None, int]:
    """The child that has the longest beginning in common with `part`, and its length."""
    best: Block | None = None
    longest = 0
    for child in children:
        tokens = child.tokens
        length = min(len(tokens), len(part))
        different = np.flatnonzero(tokens[:length] != part[:length])
        common = int(different[0]) if len(different) else length
        if common > longest:
            best, longest = child, common
    return best, longest
