"""Prefill: prompts on their way into caches of their own, a chunk at a time, in turns."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine import caches
from osaurusd.worker.engine.caches import Cache, Layout
from osaurusd.worker.engine.pace import Pace
from osaurusd.worker.engine.prefix import BLOCK_TOKENS, PrefixCache, Tokens
from osaurusd.worker.engine.request import Run
from osaurusd.worker.engine.scores import score
from osaurusd.worker.frontend.logprobs import Score

# The last pass yields the logits to go on from. Computing those of all its tokens costs little while they are this few.
LAST_PASS_TOKENS = 64
LAST_PASS_LEAST = 16

# Taking over less than this is not worth waiting for, nor keeping a state for.
WORTH_SHARING = 64

# The shortest prompt has its turn first; the longest-waiting one at the latest after being passed over this often.
MOST_PASSED_OVER = 3

# Short prompts that end together are processed together: a pass over few tokens hardly uses a GPU.
MOST_TOGETHER = 16

# Logits of a whole vocabulary for each token: the chunk bounds their bytes.
SCORING_TOKENS = 64


@dataclass(frozen=True)
class Progress:
    """What a pass did: prompt tokens processed, and the logits [1, vocabulary] after the last one if it was that."""

    tokens: int
    logits: mx.array | None


class Prefiller:
    """Takes runs forward, one chunk at a time, and keeps what they have in common for those that come after."""

    def __init__(self, network: Any, layout: Layout, prefix: PrefixCache, pace: Pace) -> None:
        self._network = network
        self._layout = layout
        self._prefix = prefix
        self._pace = pace
        self.runs: list[Run] = []

    def next_run(self) -> Run | None:
        """Whose turn it is: the one with the least left to do, unless one was passed over too often."""
        for run in self.runs:
            if not run.started and not self._waits_for_another(run):
                self._begin(run)
        ready = [run for run in self.runs if run.started]
        if not ready:
            return None
        starving = [run for run in ready if run.passed_over >= MOST_PASSED_OVER]
        chosen = starving[0] if starving else min(ready, key=lambda run: run.left)
        for run in ready:
            run.passed_over += 1
        chosen.passed_over = 0
        return chosen

    def mates(self, run: Run, most: int) -> list[Run]:
        """`run`, and others that can be brought to their end with it in a pass over at most `most` tokens."""
        group = [run]
        if not self._ends_soon(run):
            return group
        others = [other for other in self.runs if other is not run and other.started and self._ends_soon(other)]
        for other in sorted(others, key=lambda other: other.left):
            if len(group) == MOST_TOGETHER or (len(group) + 1) * max(run.left, other.left) > most:
                break
            group.append(other)
        return group

    def advance_together(self, runs: list[Run]) -> tuple[Cache, mx.array]:
        """Bring several runs to their end; returns their merged cache and the logits [runs, vocabulary] after it.

        The last tokens have a pass of their own: the logits of all others would cost more than it does.
        """
        started = time.perf_counter()
        self._pace.context = max(run.prefilled for run in runs)
        for run in runs:
            self._restore(run)
        cache = self._layout.merge([run.cache for run in runs])
        counts = [run.left - 1 for run in runs]
        width = max(counts)
        if width:
            padding = [width - count for count in counts]
            for layer in cache:
                layer.prepare(lengths=counts, right_padding=padding)
            bodies = [np.pad(run.tokens[run.prefilled : -1], (0, gap)) for run, gap in zip(runs, padding, strict=True)]
            self._network(mx.array(np.stack(bodies)), cache=cache)
            for layer in cache:
                layer.finalize()
        last = mx.array(np.array([run.tokens[-1:] for run in runs]))
        logits = self._network(last, cache=cache)[:, -1, :]
        mx.eval(logits, [layer.state for layer in cache])
        self._pace.prefilled((width + 1) * len(runs), time.perf_counter() - started)
        for row, run in enumerate(runs):
            run.prefilled = len(run.tokens)
            self._prefix.insert(run.tokens, partial(caches.pack_row, self._layout, cache, row, run.prefilled))
        return cache, logits

    def advance(self, run: Run, most: int) -> Progress:
        """One forward pass over at most `most` tokens of a run that has begun."""
        started = time.perf_counter()
        self._pace.context = run.prefilled
        self._restore(run)
        if run.scoring:
            progress = self._scoring_pass(run)
        elif run.left <= max(min(LAST_PASS_TOKENS, most), LAST_PASS_LEAST) and not run.stops:
            progress = self._last_pass(run)
        else:
            progress = self._pass(run, most)
        self._pace.prefilled(progress.tokens, time.perf_counter() - started)
        return progress

    def _ends_soon(self, run: Run) -> bool:
        """Whether its last pass is next, and padding does not matter to it."""
        simple = self._layout.batchable and not self._layout.has_states
        single = len(run.choices) == 1 and not run.scoring and not run.by_itself
        return simple and single and run.left <= LAST_PASS_TOKENS

    def _begin(self, run: Run) -> None:
        """Find what can be taken over; it is taken over with the first pass."""
        run.started = True
        run.match = self._prefix.find(run.tokens, 0 if run.scoring else len(run.tokens) - 1)
        run.prefilled = run.match.length
        if run.request.cached_tokens is None:
            run.request.cached_tokens = run.prefilled
        if self._layout.has_states and self._prefix.enabled:
            run.stops = self._stops(run, run.match.shared)

    def _restore(self, run: Run) -> None:
        if (match := run.match) is not None:
            run.cache = caches.restore(self._layout, self._network, match.blocks, match.length, match.states)
            run.match = None

    def _stops(self, run: Run, shared: int) -> list[int]:
        """Where to keep states: where it leaves an earlier prompt, where the next may leave it, near its end."""
        last = len(run.tokens) - LAST_PASS_LEAST
        wanted = {shared, run.request.shared_prefix_length or 0, last}
        first = run.prefilled + WORTH_SHARING
        return sorted((at for at in wanted if first <= at <= last), reverse=True)

    def _waits_for_another(self, run: Run) -> bool:
        """Whether one that is under way is about to process what this one begins with too, and will keep it."""
        if not self._prefix.enabled or run.scoring:
            return False
        coming, other = max(
            ((run.common(other), other) for other in self.runs if other.started and self._will_keep(other, run)),
            key=lambda pair: pair[0],
            default=(0, None),
        )
        if other is None:
            return False
        # One that waits already does so to the end: the last of it is worth as much as the first.
        if not run.waited and coming - self._prefix.find(run.tokens, len(run.tokens) - 1).length < WORTH_SHARING:
            return False
        run.waited = True
        if self._layout.has_states and coming not in other.stops:
            other.stops = sorted([*other.stops, coming], reverse=True)
        return True

    def _will_keep(self, other: Run, run: Run) -> bool:
        """Whether what both begin with is still to be processed, and in a pass after which it is kept."""
        common = run.common(other)
        last = len(other.tokens) - LAST_PASS_LEAST if self._layout.has_states else len(other.tokens)
        return not other.scoring and other.prefilled < common <= last

    def _pass(self, run: Run, most: int) -> Progress:
        count = min(most, run.left - LAST_PASS_LEAST)
        if run.stops:
            count = min(count, run.stops[-1] - run.prefilled)
        self._network(_part(run, count), cache=run.cache)
        mx.eval([layer.state for layer in run.cache])
        self._passed(run, count)
        return Progress(count, None)

    def _last_pass(self, run: Run) -> Progress:
        count = run.left
        logits = self._network(_part(run, count), cache=run.cache)[:, -1, :]
        mx.eval(logits, [layer.state for layer in run.cache])
        self._passed(run, count)
        return Progress(count, logits)

    def _scoring_pass(self, run: Run) -> Progress:
        """A pass that scores each token of the prompt by the logits before it."""
        count = min(SCORING_TOKENS, run.left)
        logits = self._network(_part(run, count), cache=run.cache)[0]
        following = run.tokens[run.prefilled + 1 : run.prefilled + count + 1]
        most = run.choices[0].sampling.scored or 0
        if len(following):
            run.scores += _scores(logits[: len(following)], following, most)
        mx.eval(logits, [layer.state for layer in run.cache])
        run.prefilled += count
        return Progress(count, None if run.left else logits[-1:])

    def _passed(self, run: Run, count: int) -> None:
        blocks_before = run.prefilled // BLOCK_TOKENS
        run.prefilled += count
        at_stop = bool(run.stops) and run.stops[-1] == run.prefilled
        awaited = any(not other.started for other in self.runs)
        if not (at_stop or awaited or not run.left or run.prefilled // BLOCK_TOKENS > blocks_before):
            return
        done = run.tokens[: run.prefilled]
        self._prefix.insert(done, partial(caches.pack, self._layout, run.cache))
        if at_stop:
            run.stops.pop()
            self._prefix.insert_state(done, caches.keep_states(run.cache))


def _part(run: Run, count: int) -> mx.array:
    return mx.array(run.tokens[run.prefilled : run.prefilled + count])[None]


def _scores(logits: mx.array, tokens: Tokens, most: int) -> list[Score]:
    return score(logits, mx.array(tokens), most, list(range(len(tokens)))).told()
