"""A decode batch: sequences that share one forward pass per step, with one cache."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine import host_sampler, kv_cache
from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.engine.kv_cache import Cache, CacheLayout, PackedKV
from osaurusd.worker.engine.request import SequenceId
from osaurusd.worker.engine.sampler import BatchSampler, LogprobArrays, SamplingState
from osaurusd.worker.engine.token_buffer import TokenBuffer
from osaurusd.worker.frontend import constraint
from osaurusd.worker.frontend.constraint import Bitmask, Constraint, ConstraintFailed
from osaurusd.worker.frontend.logprobs import Score


@dataclass(frozen=True)
class BatchEntry:
    """A sequence of `length` tokens in the cache. The position of the next one is `position_delta` higher."""

    id: SequenceId
    sampling: SamplingState
    length: int
    position_delta: int = 0


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """A token that a step yields for a sequence."""

    token: int
    score: Score | None


class CacheReader(Protocol):
    """Copies from the cache of one sequence while it decodes; valid until the next step."""

    def pack(self, start: int, end: int) -> PackedKV: ...

    def copy_states(self) -> list[Any]: ...


@dataclass(frozen=True)
class _Pending:
    """What the next tokens are to be sampled from: logits, and the allowed tokens of some rows with constraints."""

    logits: mx.array
    bitmasks: dict[int, Bitmask]

    def filter(self, keep: list[int]) -> "_Pending":
        bitmasks = {at: self.bitmasks[row] for at, row in enumerate(keep) if row in self.bitmasks}
        return _Pending(self.logits[mx.array(keep)], bitmasks)


class DecodeBatch:
    """Sequences of similar length.

    While a step returns its tokens, the forward pass of the next step is already being computed. A single sequence
    keeps its own cache, which needs no mask; several share a merged cache, padded to the longest sequence.

    MLX samples in the same computation, unless that is too slow: on a CPU, it only takes the most likely tokens. If a
    row needs more, the batch is sampled on the host at the beginning of the next step.

    Args:
        network: an mlx_lm model.
        layout: layout of its caches.
        entries: the first sequences; the first token of each is sampled immediately.
        cache: cache of all entries, merged if `merged`.
        logits: logits of the next token [entries, vocabulary].
        device: the device that MLX uses.
        late_tokens: a pass of the network can be built before its tokens are known.
        answers_first: return the first tokens before the pass after them begins. On a CPU, that takes almost as long as
            the pass.

    Attributes:
        steady: whether the last step was an ordinary one, which starts one pass.
        failed: sequences whose constraint failed, with the reason. They yield no more tokens.
    """

    def __init__(
        self,
        network: Any,
        layout: CacheLayout,
        entries: Sequence[BatchEntry],
        cache: Cache,
        logits: mx.array,
        *,
        merged: bool,
        device: Device = CPU,
        late_tokens: bool = False,
        answers_first: bool = False,
    ) -> None:
        self._network = network
        self._layout = layout
        self._cache = cache
        self._merged = merged
        self.ids = [entry.id for entry in entries]
        self.lengths = [entry.length for entry in entries]
        self.failed: dict[SequenceId, str] = {}
        self._deltas = [entry.position_delta for entry in entries]
        self._states = [entry.sampling for entry in entries]
        self._device = device
        self._late_tokens = late_tokens
        self._answers_first = answers_first
        self.steady = True
        # Tokens that were returned, but are not in the cache yet.
        self._unprocessed: mx.array | None = None
        # The next tokens: sampled, or still to be sampled on the host.
        self._tokens: mx.array | None = None
        self._logprobs: LogprobArrays | None = None
        self._pending: _Pending | None = None
        self._choose_sampler()
        self._begin_sampling(logits)

    def next_tokens(self) -> list[int]:
        """Return the tokens of the next step, by row; waits until they are computed."""
        tokens: list[int] = self._sampled().tolist()  # type: ignore[assignment]
        return tokens

    def step(self, given: list[int] | None = None) -> dict[SequenceId, list[TokenOutput]]:
        """Return the tokens of this step, and start computing the next one.

        Args:
            given: tokens by row, instead of those that this batch samples.
        """
        self.steady = self._unprocessed is None and not self._answers_first
        self._begin_late_pass()
        if given is not None:
            self._tokens, self._logprobs, self._pending = mx.array(list(given), mx.uint32), None, None
        if self._answers_first:
            self._answers_first = False
            self._unprocessed = current = self._sampled()
            outputs = self._outputs(current, self._logprobs)
        else:
            current, logits = self._begin_pass()
            logprobs, failed = self._logprobs, set(self.failed)
            self._compute(current, logits)
            outputs = self._outputs(current, logprobs, failed)
        self.lengths = [length + 1 for length in self.lengths]
        return outputs

    def _compute(self, current: mx.array, logits: mx.array) -> None:
        """Start computing the logits after the current tokens, and sampling from them."""
        if self._constrained or self._sampler is None:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        if self._constrained:
            # What is allowed next depends on the current tokens, and is computed while the forward pass runs. An end
            # token is irrelevant for the constraint: its sequence leaves before the next step.
            self._advance_constraints(current.tolist())  # type: ignore[arg-type]
        self._begin_sampling(logits)

    def _begin_late_pass(self) -> None:
        """Start computing the next step, if the last one only returned tokens."""
        if self._unprocessed is not None:
            current, self._unprocessed = self._unprocessed, None
            self._compute(current, self._logits_after(current))

    def _begin_pass(self) -> tuple[mx.array, mx.array]:
        """Return the tokens of this step, and the logits after them, whose computation has not begun.

        If the tokens are still to be sampled on the host, the pass is built before they are known, because the previous
        one is being computed meanwhile.
        """
        if self._tokens is not None or not self._late_tokens:
            current = self._sampled()
            return current, self._logits_after(current)
        buffer = TokenBuffer(len(self.ids))
        logits = self._logits_after(buffer.tokens)
        current = self._sampled()
        buffer.fill(current)
        return current, logits

    def _logits_after(self, tokens: mx.array) -> mx.array:
        positions = {"position_deltas": mx.array(self._deltas)} if any(self._deltas) else {}
        logits: mx.array = self._network(tokens[:, None], cache=self._cache, **positions)
        return logits[:, -1, :]

    def absorb(self, other: "DecodeBatch") -> None:
        """Take over all sequences of another batch."""
        self._begin_late_pass()
        other._begin_late_pass()
        self._answers_first |= other._answers_first
        self._tokens = mx.concatenate([self._sampled(), other._sampled()])
        cache = self._merged_cache()
        for layer, other_layer in zip(cache, other._merged_cache(), strict=True):
            layer.extend(other_layer)
        self._cache, self._merged = cache, True
        if other._logprobs is not None:
            logprobs = LogprobArrays.empty() if self._logprobs is None else self._logprobs
            self._logprobs = logprobs.extend(other._logprobs, len(self.ids))
        self.ids += other.ids
        self.lengths += other.lengths
        self.failed |= other.failed
        self._deltas += other._deltas
        self._states += other._states
        self._choose_sampler()

    def remove(self, ids: Collection[SequenceId]) -> None:
        keep = [row for row, id_ in enumerate(self.ids) if id_ not in ids]
        if len(keep) == len(self.ids):
            return
        if keep:
            self._begin_late_pass()
        self.ids = [self.ids[row] for row in keep]
        self.lengths = [self.lengths[row] for row in keep]
        self._deltas = [self._deltas[row] for row in keep]
        self._states = [self._states[row] for row in keep]
        if not keep:
            return
        self._choose_sampler()
        self._tokens = None if self._tokens is None else self._tokens[mx.array(keep)]
        self._logprobs = self._logprobs.filter(keep) if self._logprobs else None
        self._pending = self._pending.filter(keep) if self._pending else None
        if len(keep) == 1:
            self._cache, self._merged = kv_cache.extract_row(self._cache, keep[0]), False
        else:
            for layer in self._cache:
                layer.filter(keep)

    def length(self, id_: SequenceId) -> int:
        """Return how many tokens of a sequence its cache has: all that were returned, except for first ones."""
        return self.lengths[self.ids.index(id_)] - (self._unprocessed is not None)

    def reader(self, id_: SequenceId) -> CacheReader:
        """Return a reader of a sequence's cache."""
        row = self.ids.index(id_)
        if self._merged:
            return _RowReader(self._layout, self._cache, row, self.length(id_))
        return _SequenceReader(self._layout, self._cache)

    def _merged_cache(self) -> Cache:
        return self._cache if self._merged else self._layout.merge([self._cache])

    # Sampling

    def _choose_sampler(self) -> None:
        """Prepare to sample the rows with MLX or, if there is no sampler, on the host."""
        self._constrained = [row for row, state in enumerate(self._states) if state.constraint is not None]
        fast = self._device.is_gpu or all(state.plain and state.logprobs is None for state in self._states)
        self._sampler = BatchSampler(self._states) if fast else None

    def _begin_sampling(self, logits: mx.array) -> None:
        bitmasks = {row: self._bitmask(row, logits.shape[-1]) for row in self._constrained if self._needs_bitmask(row)}
        if self._sampler is None:
            self._tokens, self._logprobs, self._pending = None, None, _Pending(logits, bitmasks)
            for state in self._states:
                if not state.greedy:
                    host_sampler.prepare_draw(state, logits.shape[-1])
            return
        self._tokens, self._logprobs = self._sampler.sample(logits, self._masked(logits, list(bitmasks.values())))
        mx.async_eval(self._tokens, self._logprobs.arrays if self._logprobs else [])  # type: ignore[no-untyped-call]

    def _sampled(self) -> mx.array:
        """Return the next tokens; sample them first if that is still to be done."""
        if self._tokens is None:
            assert self._pending is not None, "sampling has begun"
            logits = host_sampler.to_numpy(self._pending.logits)
            self._tokens, self._logprobs = host_sampler.sample(self._states, logits, self._pending_bitmask)
            self._pending = None
        return self._tokens

    def _masked(self, logits: mx.array, bitmasks: Sequence[Bitmask]) -> mx.array | None:
        """Return the logits of the constrained rows with forbidden tokens at -inf."""
        return constraint.apply(logits[mx.array(self._constrained)], np.stack(bitmasks)) if bitmasks else None

    def _advance_constraints(self, tokens: list[int]) -> None:
        for row in self._constrained:
            with self._constraint(row) as rule:
                rule.advance(tokens[row])

    def _needs_bitmask(self, row: int) -> bool:
        """Whether to compute the row's allowed tokens while the forward pass runs.

        If it takes the most likely token, only that one is checked, once it is known.
        """
        return self._sampler is not None or not self._states[row].takes_best

    def _pending_bitmask(self, row: int) -> Bitmask:
        assert self._pending is not None, "sampling has begun"
        bitmask = self._pending.bitmasks.get(row)
        return self._bitmask(row, self._pending.logits.shape[-1]) if bitmask is None else bitmask

    def _bitmask(self, row: int, vocabulary: int) -> Bitmask:
        """Return the allowed tokens of a row; all if its constraint fails."""
        bitmask = np.full(-(-vocabulary // 32), -1, np.int32)
        with self._constraint(row) as rule:
            rule.fill(bitmask)
        return bitmask

    @contextlib.contextmanager
    def _constraint(self, row: int) -> Iterator[Constraint]:
        """Yield the row's constraint; if it fails, record that without disturbing the other rows."""
        rule = self._states[row].constraint
        assert rule is not None, "the row is constrained"
        try:
            yield rule
        except ConstraintFailed as failure:
            self.failed.setdefault(self.ids[row], str(failure))

    def _outputs(
        self, current: mx.array, logprobs: LogprobArrays | None, failed: Collection[SequenceId] | None = None
    ) -> dict[SequenceId, list[TokenOutput]]:
        """Return the current tokens by sequence; none for those whose constraint had failed before."""
        tokens: list[int] = current.tolist()  # type: ignore[assignment]
        scores, failed = self._scores(logprobs), self.failed if failed is None else failed
        return {
            id_: [] if id_ in failed else [TokenOutput(tokens[row], scores.get(row))]
            for row, id_ in enumerate(self.ids)
        }

    def _scores(self, logprobs: LogprobArrays | None) -> dict[int, Score]:
        """Return the scores by row, each with the number of alternatives that its request specifies."""
        if logprobs is None:
            return {}
        scores = zip(logprobs.rows, logprobs.scores(), strict=True)
        return {row: Score(score.logprob, score.top[: self._states[row].logprobs]) for row, score in scores}


@dataclass(frozen=True)
class _SequenceReader:
    layout: CacheLayout
    cache: Cache

    def pack(self, start: int, end: int) -> PackedKV:
        return kv_cache.pack(self.layout, self.cache, start, end)

    def copy_states(self) -> list[Any]:
        return kv_cache.copy_states(self.cache)


@dataclass(frozen=True)
class _RowReader:
    layout: CacheLayout
    batch: Cache
    row: int
    length: int

    def pack(self, start: int, end: int) -> PackedKV:
        return kv_cache.pack_row(self.layout, self.batch, self.row, self.length, start, end)

    def copy_states(self) -> list[Any]:
        return kv_cache.copy_row_states(self.batch, self.row)
