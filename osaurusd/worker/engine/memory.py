"""The memory budget: whether sequences fit into memory, estimated before they start."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from osaurusd.worker.engine.chunk_sizer import MAX_TOKENS, MIN_TOKENS, ChunkSizer
from osaurusd.worker.engine.kv_cache import GROWTH_TOKENS, CacheLayout

# Longer than any sequence.
_UNLIMITED_TOKENS = 2**24

# A prefill pass may use 1/`_PASS_FRACTION` of the memory that the weights leave free; the rest is for caches.
_PASS_FRACTION = 4

# A request of ordinary length, and the shortest prefill chunk that is efficient enough to serve it.
ORDINARY_TOKENS = 2048
_ORDINARY_CHUNK = 64


@dataclass
class MemoryBudget:
    """Byte estimates for one model. Pure arithmetic.

    Attributes:
        layout: layout of the model's caches.
        weights_bytes: size of the loaded weights.
        limit_bytes: what the worker may use; None for no limit.
        pass_bytes_per_token: memory that a prefill pass needs per token, in addition to weights and caches.
        score_bytes: additional memory per pair of a token of the pass and a token of the sequence.
        chunk_sizer: chooses the number of tokens in a pass.
        peers: the budgets of the other ranks of a group, each of which must have room for its part of a sequence.
    """

    layout: CacheLayout
    weights_bytes: int
    limit_bytes: int | None
    pass_bytes_per_token: int
    score_bytes: int
    chunk_sizer: ChunkSizer
    peers: Sequence["MemoryBudget"] = ()

    def peak_bytes(self, decoding: Sequence[int], joining: Sequence[int] = (), image_bytes: int = 0) -> int:
        """Return the peak while sequences of the final lengths `decoding` run and those of `joining` join them.

        All sequences of a merged cache are padded to the longest, and joining copies the cache. Those that join may
        share a prefill pass. Their images need `image_bytes`.
        """
        together = [*decoding, *joining]
        longest = max(together, default=0)
        batch = self._batch_bytes(together)
        copied = self._batch_bytes(decoding) + sum(self._batch_bytes([length]) for length in joining)
        copies = copied if joining and len(together) > 1 else 0
        passes = self._pass_bytes(longest, max(longest, sum(joining)))
        return self.weights_bytes + batch + copies + image_bytes + passes

    def set_limit(self, limit_bytes: int | None) -> None:
        """Change the limit, and shorten prefill chunks as needed."""
        self.limit_bytes = limit_bytes
        self.set_context(0)

    def set_context(self, tokens: int) -> None:
        """Prepare the chunk sizer for a pass after `tokens` tokens: the longer the context, the shorter the pass."""
        self.chunk_sizer.context = tokens
        self.chunk_sizer.max_tokens = self._max_pass_tokens(tokens)

    @property
    def pass_bytes(self) -> int:
        """The intermediates of the largest pass at the beginning of a prompt."""
        tokens = min(self.chunk_sizer.largest_pass, self._max_pass_tokens(0))
        return tokens * self._bytes_per_pass_token(tokens)

    def serving_bytes(self, tokens: int) -> int:
        """Return the limit under which a sequence of `tokens` fits and its prefill chunks are not too short."""
        for_cache = self._batch_bytes([tokens]) * _PASS_FRACTION // (_PASS_FRACTION - 1)
        for_passes = _ORDINARY_CHUNK * self._bytes_per_pass_token(tokens) * _PASS_FRACTION
        return self.weights_bytes + max(for_cache, for_passes) + 1

    def fits(self, decoding: Sequence[int], joining: Sequence[int] = (), image_bytes: int = 0) -> bool:
        fits = self.limit_bytes is None or self.peak_bytes(decoding, joining, image_bytes) <= self.limit_bytes
        return fits and all(peer.fits(decoding, joining, image_bytes) for peer in self.peers)

    def spare_bytes(self, peak_bytes: int, decoding: Sequence[int], joining: Sequence[int]) -> int | None:
        """Return the memory that sequences with a peak of `peak_bytes` leave to caches; None if unlimited."""
        rest = None if self.limit_bytes is None else max(self.limit_bytes - peak_bytes, 0)
        for peer in self.peers:
            spare = peer.spare_bytes(peer.peak_bytes(decoding, joining), decoding, joining)
            if spare is not None:
                # In the size that its content has here.
                spare = spare * self._ordinary_bytes // max(peer._ordinary_bytes, 1)
                rest = spare if rest is None else min(rest, spare)
        return rest

    def max_tokens(self, sequences: int, image_bytes: int = 0) -> int | None:
        """Return the final length that `sequences` sequences could each reach on their own; None if unlimited."""
        if self.fits([], [_UNLIMITED_TOKENS] * sequences, image_bytes):
            return None
        low, high = 0, _UNLIMITED_TOKENS
        while high - low > GROWTH_TOKENS:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits([], [middle] * sequences, image_bytes) else (low, middle)
        return low // GROWTH_TOKENS * GROWTH_TOKENS

    def _pass_bytes(self, longest: int, total: int) -> int:
        """Return the bytes of the largest pass over sequences of `total` tokens, the longest of which is `longest`."""
        tokens = min(self.chunk_sizer.largest_pass, total)
        wanted = tokens * self._bytes_per_pass_token(longest)
        if self.limit_bytes is None:
            return wanted
        shortest = min(tokens, MIN_TOKENS) * self._bytes_per_pass_token(longest)
        return min(wanted, max(self._room_for_passes, shortest))

    @property
    def _room_for_passes(self) -> int:
        limit = self.weights_bytes if self.limit_bytes is None else self.limit_bytes
        return max(limit - self.weights_bytes, 0) // _PASS_FRACTION

    def _max_pass_tokens(self, context: int) -> int:
        """Return the most tokens of a pass whose intermediates, with the scores of all pairs of tokens, fit."""
        return min(budget._max_own_pass_tokens(context) for budget in (self, *self.peers))

    def _max_own_pass_tokens(self, context: int) -> int:
        if self.limit_bytes is None:
            return MAX_TOKENS
        # Positive root of score_bytes * tokens² + bytes_per_pass_token(context) * tokens = room.
        linear, room = self._bytes_per_pass_token(context), self._room_for_passes
        root = math.sqrt(linear**2 + 4 * self.score_bytes * room)
        tokens = int(2 * room / max(linear + root, 1))
        return min(max(tokens, MIN_TOKENS), MAX_TOKENS)

    def _bytes_per_pass_token(self, longest: int) -> int:
        return self.pass_bytes_per_token + self.score_bytes * longest

    @property
    def _ordinary_bytes(self) -> int:
        return self._batch_bytes([ORDINARY_TOKENS])

    def _batch_bytes(self, lengths: Sequence[int]) -> int:
        return self.layout.bytes_for(len(lengths), max(lengths)) if lengths else 0
