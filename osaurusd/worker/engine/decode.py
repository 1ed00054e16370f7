"""Decoding: one step yields one token for every sequence that has joined."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from osaurusd.worker.engine.caches import Layout
from osaurusd.worker.engine.lane import Entrant, Group, Kept, Lane, Token
from osaurusd.worker.engine.sampling import SamplingState

__all__ = ["MAX_SEQUENCES", "Decoder", "Entrant", "Group", "Token"]

MAX_SEQUENCES = 32

# Time that attention takes for a token of padding, in units of the time that a pass takes for as many bytes of weights.
PADDING_COST_CPU = 6
PADDING_COST_GPU = 1


class Decoder:
    """All sequences, joining and leaving between steps.

    Those of about the same length share a lane, and with it a forward pass. A pass reads all weights, but a sequence
    that shares one is padded to the longest in it: a lane takes in whom that costs less than a pass of his own.

    Args:
        network: an mlx_lm model.
        layout: of its caches.
        weights_bytes: what a pass reads.
    """

    def __init__(self, network: Any, layout: Layout, weights_bytes: int = 0) -> None:
        self._network = network
        self._layout = layout
        cost = PADDING_COST_CPU if mx.default_device() == mx.cpu else PADDING_COST_GPU
        self._padding_worth_a_pass = weights_bytes // (max(layout.bytes_per_token, 1) * cost)
        self._lanes: list[Lane] = []
        self._failed: dict[SamplingState, str] = {}

    def __len__(self) -> int:
        return sum(len(lane.rows) for lane in self._lanes)

    @property
    def lanes(self) -> list[list[int]]:
        """The lengths of the sequences, lane by lane."""
        return [list(lane.lengths) for lane in self._lanes]

    def join(self, entrants: Sequence[Entrant], groups: Sequence[Group] = ()) -> None:
        """Add sequences, and choose the first token of each."""
        for group, merged in (*((group, True) for group in groups), *self._grouped(entrants)):
            lane = Lane(self._network, self._layout, group, merged=merged)
            self._take_failed_of(lane)
            self._place(lane)

    def step(self) -> list[Token]:
        """Hand out one token for every sequence, and have the next ones computed."""
        tokens = [token for lane in self._lanes for token in lane.step()]
        for lane in self._lanes:
            self._take_failed_of(lane)
        return tokens

    def take_failed(self) -> dict[SamplingState, str]:
        """The sequences whose constraint cannot go on, and why: nothing further that they say is to be believed."""
        failed, self._failed = self._failed, {}
        return failed

    def kept(self, row: SamplingState) -> Kept:
        """What a sequence's cache holds, its last token handed out included."""
        return next(lane for lane in self._lanes if row in lane.rows).kept(row)

    def leave(self, rows: Sequence[SamplingState]) -> None:
        """Take sequences out."""
        before = len(self)
        for lane in self._lanes:
            lane.leave(rows)
        if len(self) == before:
            return
        # With fewer sequences, padding costs less: lanes that were apart may be better together.
        lanes, self._lanes = [lane for lane in self._lanes if lane.rows], []
        for lane in lanes:
            self._place(lane)

    def _place(self, lane: Lane) -> None:
        """Put a lane's sequences where they are decoded with the least padding, or leave it by itself."""
        fitting = [other for other in self._lanes if self._padding(other, lane) <= self._padding_worth_a_pass]
        if fitting and self._layout.batchable:
            min(fitting, key=lambda other: self._padding(other, lane)).absorb(lane)
        else:
            self._lanes.append(lane)

    def _padding(self, one: Lane, other: Lane) -> int:
        """Tokens of padding that two lanes have together beyond what each has by itself."""
        together = max(one.longest, other.longest) * (len(one.rows) + len(other.rows))
        return together - one.longest * len(one.rows) - other.longest * len(other.rows)

    def _take_failed_of(self, lane: Lane) -> None:
        self._failed |= lane.failed
        lane.failed = {}

    def _grouped(self, entrants: Sequence[Entrant]) -> Iterator[tuple[Group, bool]]:
        """Entrants that go on from one and the same cache, together; it is merged if they are several."""
        found: dict[int, list[Entrant]] = {}
        for entrant in entrants:
            found.setdefault(id(entrant.cache), []).append(entrant)
        for same in found.values():
            merged = len(same) > 1
            cache = self._layout.merge([entrant.cache for entrant in same]) if merged else same[0].cache
            logits = mx.concatenate([entrant.logits for entrant in same])
            yield Group([entrant.row for entrant in same], cache, [entrant.length for entrant in same], logits), merged
