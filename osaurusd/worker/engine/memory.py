"""Whether a sequence fits into memory, estimated before it starts. Arithmetic only, done anew each time."""

from collections.abc import Sequence
from dataclasses import dataclass

from osaurusd.worker.engine.caches import GROWTH_TOKENS, Layout
from osaurusd.worker.engine.pace import LEAST_TOKENS, MOST_TOKENS, Pace

# Tokens of a sequence longer than any.
_ENDLESS = 2**24

# Of the room beside the weights, what a prefill pass may take: the rest is for caches.
_PASS_PART = 4

# A sequence of ordinary length, and a pass long enough to be worth its while.
ORDINARY_TOKENS = 2048
_ORDINARY_PASS = 64


@dataclass
class Memory:
    """Byte estimates for one model.

    `limit_bytes` is what the worker may use, None for no limit. A prefill pass needs `pass_bytes_per_token` for each of
    its tokens beyond weights and caches, and `score_bytes` more for each token of its sequence; `pace` says how many
    tokens a pass has.
    """

    layout: Layout
    weights_bytes: int
    limit_bytes: int | None
    pass_bytes_per_token: int
    score_bytes: int
    pace: Pace

    def peak_bytes(self, lengths: Sequence[int], joining: Sequence[int] = ()) -> int:
        """The most that is in use while sequences of these final lengths decode together and `joining` ones join them.

        A merged cache is as long as its longest sequence for all of them, and joining copies it.
        """
        together = [*lengths, *joining]
        batch = self._batch_bytes(together)
        copied = self._batch_bytes(lengths) + sum(self._batch_bytes([length]) for length in joining)
        copies = copied if joining and len(together) > 1 else 0
        return self.weights_bytes + batch + copies + self._pass_bytes(max(together, default=0))

    def limit(self, limit_bytes: int | None) -> None:
        """Use no more than this from now on; passes become as short as that takes."""
        self.limit_bytes = limit_bytes
        most = MOST_TOKENS
        if limit_bytes is not None:
            room = max(limit_bytes - self.weights_bytes, 0)
            most = room // _PASS_PART // max(self._bytes_per_pass_token(ORDINARY_TOKENS), 1)
        self.pace.most_tokens = min(max(most, LEAST_TOKENS), MOST_TOKENS)

    def least_bytes(self, tokens: int) -> int:
        """The limit under which a sequence of `tokens` still fits, and has passes that are not too short."""
        for_cache = self._batch_bytes([tokens]) * _PASS_PART // (_PASS_PART - 1)
        for_passes = _ORDINARY_PASS * self._bytes_per_pass_token(tokens) * _PASS_PART
        return self.weights_bytes + max(for_cache, for_passes) + 1

    def fits(self, lengths: Sequence[int], joining: Sequence[int] = ()) -> bool:
        """Whether there is room for all of them at once."""
        return self.limit_bytes is None or self.peak_bytes(lengths, joining) <= self.limit_bytes

    def most_tokens(self, sequences: int) -> int | None:
        """The final length that `sequences` like sequences could have with nothing beside them; None for any."""
        if self.limit_bytes is None or self.fits([], [_ENDLESS] * sequences):
            return None
        low, high = 0, _ENDLESS
        while high - low > GROWTH_TOKENS:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits([], [middle] * sequences) else (low, middle)
        return low // GROWTH_TOKENS * GROWTH_TOKENS

    def _pass_bytes(self, longest: int) -> int:
        tokens = min(self.pace.tokens(shared=False), longest)
        return tokens * self._bytes_per_pass_token(longest)

    def _bytes_per_pass_token(self, longest: int) -> int:
        return self.pass_bytes_per_token + self.score_bytes * longest

    def _batch_bytes(self, lengths: Sequence[int]) -> int:
        return self.layout.bytes_for(len(lengths), max(lengths)) if lengths else 0
