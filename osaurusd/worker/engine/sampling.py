"""Choosing the next tokens of a batch: every sequence by its own rules, all of them in one go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx
import numpy as np

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine.scores import Scores, score
from osaurusd.worker.frontend.constraint import Constraint

# Below this the division by the temperature overflows float32 long before it changes the choice.
GREEDY_BELOW = 1e-4

_MASK = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(eq=False)
class SamplingState:
    """How one sequence of a batch chooses its tokens, and what it remembers between two choices.

    `scored` is how many likeliest tokens to tell of each choice, None for no scores. `prompt` and `said` are the
    tokens before the first choice, for penalties; `entropy` stands in for a seed, `number` tells answers of one seed
    apart, and `chosen` counts the choices.
    """

    sampling: SamplingParams
    prompt: Sequence[int] = ()
    said: Sequence[int] = ()
    constraint: Constraint | None = None
    scored: int | None = None
    entropy: int = 0
    number: int = 0
    chosen: int = 0
    counts: mx.array | None = field(default=None, repr=False)
    seen: mx.array | None = field(default=None, repr=False)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW

    @property
    def penalized(self) -> bool:
        s = self.sampling
        return bool(s.repetition_penalty != 1 or s.frequency_penalty or s.presence_penalty)

    @property
    def edited(self) -> bool:
        """Whether its logits are changed before anything is chosen."""
        return self.penalized or bool(self.sampling.logit_bias)

    @property
    def truncated(self) -> bool:
        s = self.sampling
        return s.top_p < 1 or s.top_k > 0 or s.min_p > 0

    def begin_again(self, said: Sequence[int]) -> None:
        """Go on after `said`: choices beyond it are forgotten."""
        self.output_tokens, self.chosen = list(said), len(said)
        self.counts = self.seen = None

    def key(self) -> tuple[int, int]:
        """The random key of this choice: of the seed and the number of the choice, whatever else is in the batch."""
        seed = self.entropy if self.sampling.seed is None else self.sampling.seed
        mixed = _mix(_mix(_mix(seed & _MASK) + self.number) + self.chosen)
        return mixed >> 32, mixed & 0xFFFF_FFFF


class Batch:
    """The rows of a batch, in order, and what follows from who they are."""

    def __init__(self, rows: Sequence[SamplingState]) -> None:
        self.rows = list(rows)
        self.hot = [at for at, row in enumerate(rows) if not row.greedy]
        self.edited = [at for at, row in enumerate(rows) if row.edited]
        self.constrained = [at for at, row in enumerate(rows) if row.constraint is not None]
        self.scored = [at for at, row in enumerate(rows) if row.scored is not None]

    def choose(self, logits: mx.array, masked: mx.array | None = None) -> tuple[mx.array, Scores | None]:
        """One token for every row.

        Args:
            logits: [rows, vocabulary], as the model gives them.
            masked: the rows of `constrained` with what they may not say at -inf, None if there are none.

        Returns:
            Token ids [rows], and scores, which are the model's own: nothing that a request asks for changes them.
        """
        rules = logits
        if masked is not None:
            rules = _put(rules, self.constrained, masked)
        if self.edited:
            rules = rules.astype(mx.float32)  # half precision would swallow small penalties
            rules = _put(rules, self.edited, mx.concatenate([_edit(self.rows[at], rules[at]) for at in self.edited]))
        tokens = self._pick(rules)
        self._remember(tokens)
        return tokens, self._score(logits, tokens) if self.scored else None

    def _pick(self, logits: mx.array) -> mx.array:
        if not self.hot:
            return mx.argmax(logits, axis=-1)
        warm = logits if len(self.hot) == len(self.rows) else logits[mx.array(self.hot)]
        warm = warm.astype(mx.float32) * self._inverse_temperatures
        for truncate in self._truncations:
            warm = truncate(warm)
        picked = mx.argmax(warm + self._noise(warm.shape[-1]), axis=-1)
        if len(self.hot) == len(self.rows):
            return picked
        return _put(mx.argmax(logits, axis=-1), self.hot, picked)

    def _noise(self, vocabulary: int) -> mx.array:
        """Gumbel noise [hot rows, vocabulary]: the largest sum of it and a logit is a fair draw from the softmax."""
        keys = mx.array(np.array([self.rows[at].key() for at in self.hot], np.uint32))
        return mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(keys)

    def _remember(self, tokens: mx.array) -> None:
        for at in self.hot:
            self.rows[at].chosen += 1
        for at in self.edited:
            row = self.rows[at]
            if row.counts is not None:
                row.counts = row.counts.at[tokens[at]].add(1)

    def _score(self, logits: mx.array, tokens: mx.array) -> Scores:
        most = max(self.rows[at].scored or 0 for at in self.scored)
        picked = logits[mx.array(self.scored)]
        return score(picked, tokens[mx.array(self.scored)], most, self.scored)

    @cached_property
    def _inverse_temperatures(self) -> mx.array:
        return mx.array([[1 / self.rows[at].sampling.temperature] for at in self.hot], mx.float32)

    @cached_property
    def _truncations(self) -> list["_Truncation"]:
        """The hot rows that cut something off, apart by what it takes: only `top_p` alone sorts the vocabulary."""
        found: dict[tuple[bool, bool], list[tuple[int, SamplingParams]]] = {}
        for place, at in enumerate(self.hot):
            if self.rows[at].truncated:
                sampling = self.rows[at].sampling
                found.setdefault((sampling.top_k > 0, sampling.top_p < 1), []).append((place, sampling))
        return [_Truncation(rows, everything=len(self.hot)) for rows in found.values()]


class _Truncation:
    """Cuts unlikely tokens off: those below `min_p` of the likeliest, those after the first `top_k`, and those after
    the smallest set that holds `top_p` of what is left then. Tokens as likely as the last one that stays do stay.
    """

    def __init__(self, rows: Sequence[tuple[int, SamplingParams]], *, everything: int) -> None:
        self._places = None if len(rows) == everything else [place for place, _ in rows]
        samplings = [sampling for _, sampling in rows]
        self._top_k = [sampling.top_k for sampling in samplings]
        self._needs_order = any(sampling.top_p < 1 or sampling.top_k for sampling in samplings)
        self._ranks = mx.array([[sampling.top_k or 2**30] for sampling in samplings])
        self._top_p = mx.array([[sampling.top_p] for sampling in samplings], mx.float32)
        self._log_min_p = mx.array([[np.log(s.min_p) if s.min_p else -np.inf] for s in samplings], mx.float32)

    def __call__(self, logits: mx.array) -> mx.array:
        """The rows of `logits` with what is cut off at -inf."""
        rows = logits if self._places is None else logits[mx.array(self._places)]
        rows = mx.where(rows >= mx.max(rows, axis=-1, keepdims=True) + self._log_min_p, rows, -mx.inf)
        if self._needs_order:
            rows = mx.where(rows >= self._threshold(rows), rows, -mx.inf)
        return rows if self._places is None else _put(logits, self._places, rows)

    def _threshold(self, rows: mx.array) -> mx.array:
        """The logit of the last token that stays."""
        ranked = self._ranked(rows)
        probabilities = mx.softmax(mx.where(mx.arange(ranked.shape[-1]) < self._ranks, ranked, -mx.inf), axis=-1)
        likelier = mx.cumsum(probabilities, axis=-1) - probabilities
        # The likeliest stays whatever `top_p` says; what has rank or probability left over goes.
        stays = (likelier < self._top_p) & (probabilities > 0)
        return mx.min(mx.where(stays, ranked, mx.inf), axis=-1, keepdims=True)

    def _ranked(self, rows: mx.array) -> mx.array:
        """Logits in falling order, as many as can matter."""
        most = max(self._top_k)
        if all(self._top_k) and most < rows.shape[-1]:
            rows = mx.topk(rows, most, axis=-1)
        return -mx.sort(-rows, axis=-1)


def _edit(row: SamplingState, logits: mx.array) -> mx.array:
    """The logits [vocabulary] of one row with its bias and penalties, as [1, vocabulary]."""
    sampling = row.sampling
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        logits = logits.at[mx.array(ids)].add(mx.array(values, logits.dtype))
    if row.penalized:
        logits = _penalize(row, logits)
    return logits[None]


def _penalize(row: SamplingState, logits: mx.array) -> mx.array:
    sampling = row.sampling
    if row.counts is None:
        row.counts = mx.zeros(logits.shape, mx.float32)
        row.seen = mx.zeros(logits.shape, mx.bool_)
        if row.output_tokens:
            row.counts = row.counts.at[mx.array(list(row.output_tokens))].add(1)
        if row.prompt:
            row.seen[mx.array(list(set(row.prompt)))] = True
    said = row.counts > 0
    if sampling.repetition_penalty != 1:
        weakened = mx.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = mx.where(said | row.seen, weakened, logits)  # type: ignore[operator]
    return logits - sampling.frequency_penalty * row.counts - sampling.presence_penalty * said


def _put(rows: mx.array, places: list[int], values: mx.array) -> mx.array:
    """`rows` with those at `places` replaced."""
    if len(places) == rows.shape[0]:
        return values
    changed = rows[:]
    changed[mx.array(places)] = values.astype(rows.dtype)
    return changed


def _mix(value: int) -> int:
    """SplitMix64 (Steele, Lea and Flood, 2014): neighbouring numbers in, unrelated ones out."""
    value = (value + 0x9E37_79B9_7F4A_7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return value ^ (value >> 31)
