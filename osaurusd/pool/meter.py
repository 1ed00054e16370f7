"""How much models do and how fast, counted where their frames arrive."""

import time
from collections import deque
from collections.abc import Callable, Iterable

from osaurusd.inference.events import Completed
from osaurusd.metrics import Counter, Family, Histogram

TTFT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

# What a model's present speed is taken over.
RATE_SECONDS = 5

_MODEL = ("model",)


class Meters:
    """Counts of all models, over all of their workers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.prompt_tokens = Counter("osaurus_prompt_tokens_total", "Tokens of prompts.", _MODEL)
        self.cached_tokens = Counter(
            "osaurus_cached_prompt_tokens_total", "Tokens of prompts that the prefix cache had.", _MODEL
        )
        self.completion_tokens = Counter("osaurus_completion_tokens_total", "Tokens of answers.", _MODEL)
        self.cache_lookups = Counter(
            "osaurus_prefix_cache_requests_total", "Requests by whether the prefix cache had some.", ("model", "result")
        )
        self.first_token = Histogram(
            "osaurus_time_to_first_token_seconds",
            "From a request's arrival at a loaded model to its first token.",
            _MODEL,
            TTFT_BOUNDS,
        )
        self.gap = Histogram(
            "osaurus_inter_token_seconds", "Between two tokens of an answer, as they arrive.", _MODEL, GAP_BOUNDS
        )
        self.loads = Counter("osaurus_loads_total", "Loads by how they ended.", ("model", "result"))
        self.unloads = Counter("osaurus_unloads_total", "Workers that were ended, by cause.", ("model", "cause"))
        self.crashes = Counter("osaurus_crashes_total", "Workers that ended by themselves.", _MODEL)

    def families(self) -> Iterable[Family]:
        return (
            self.prompt_tokens,
            self.cached_tokens,
            self.completion_tokens,
            self.cache_lookups,
            self.first_token,
            self.gap,
            self.loads,
            self.unloads,
            self.crashes,
        )


class Tally:
    """What one worker does. Deltas are counted as tokens until the exact numbers come with the end of a request."""

    def __init__(self, model: str, meters: Meters) -> None:
        self._model = model
        self._meters = meters
        self._recent: deque[tuple[int, int]] = deque()
        self.first_token_seconds: float | None = None

    def begin(self) -> "Timing":
        """A request is sent to the worker."""
        return Timing(self, self._meters.clock())

    def rate(self) -> float:
        """Tokens a second over the last few seconds."""
        now = int(self._meters.clock())
        return sum(count for second, count in self._recent if now - RATE_SECONDS <= second < now) / RATE_SECONDS

    def arrived(self, now: float, gap: float | None) -> None:
        """A token arrived, so long after the one before it."""
        if gap is not None:
            self._meters.gap.observe(gap, self._model)
        second = int(now)
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1] = second, self._recent[-1][1] + 1
            return
        self._recent.append((second, 1))
        if len(self._recent) > RATE_SECONDS + 1:
            self._recent.popleft()

    def waited(self, seconds: float) -> None:
        """A request had to wait so long for its first token."""
        self._meters.first_token.observe(seconds, self._model)
        if self.first_token_seconds is None:
            self.first_token_seconds = seconds

    def ended(self, done: Completed) -> None:
        """A request is complete."""
        self._meters.prompt_tokens.add(done.usage.prompt_tokens, self._model)
        self._meters.cached_tokens.add(done.usage.cached_tokens, self._model)
        self._meters.completion_tokens.add(done.usage.completion_tokens, self._model)
        self._meters.cache_lookups.add(1, self._model, "hit" if done.usage.cached_tokens else "miss")

    def broken_off(self, tokens: int) -> None:
        """A request ended early, after about so many tokens."""
        self._meters.completion_tokens.add(tokens, self._model)


class Timing:
    """One request's clock."""

    def __init__(self, tally: Tally, started: float) -> None:
        self._tally = tally
        self._started = started
        self._last: dict[int, float] = {}
        self._tokens = 0
        self._closed = False

    def delta(self, index: int, now: float) -> None:
        """Something of answer `index` arrived."""
        before = self._last.get(index)
        if not self._last:
            self._tally.waited(now - self._started)
        self._last[index] = now
        self._tokens += 1
        self._tally.arrived(now, None if before is None else now - before)

    def done(self, done: Completed) -> None:
        """It is complete."""
        self._closed = True
        self._tally.ended(done)

    def close(self) -> None:
        """Nothing more of it will be counted."""
        if not self._closed:
            self._closed = True
            self._tally.broken_off(self._tokens)
