"""Prefill chunk sizes: short while other sequences wait for their next token, long while none does."""

from dataclasses import dataclass, field

# Running sequences stall no longer than `stall_seconds` or this many of their decode steps, whichever is longer ...
STALL_STEPS = 6
# ... and no longer than this many of their steps if passes that short are efficient.
TARGET_STEPS = 4

# Reading the weights dominates passes over fewer tokens than this.
EFFICIENT_TOKENS = 64

# Without running sequences passes are long, but cancellations and new requests are noticed this often.
IDLE_SECONDS = 0.8

# Token times are measured separately for each multiple of this context length.
CONTEXT_BUCKET = 512

MIN_TOKENS = 16
MAX_TOKENS = 2048
_MULTIPLE = 16

# Weight of a new measurement in the moving average.
_SMOOTHING = 0.3

# If the fixed time of a pass was measured too long, at least this share of a pass is attributed to its tokens.
_MIN_TOKEN_SHARE = 0.25

# A first prompt waits for others for this share of its own prefill time, but not longer than `MAX_BATCHING_SECONDS`.
_BATCHING_SHARE = 0.25
MAX_BATCHING_SECONDS = 0.05


@dataclass
class ChunkSizer:
    """Chooses how many prompt tokens a step processes, from measured times. Reads no clock.

    Attributes:
        token_seconds: time per prompt token at a context below `CONTEXT_BUCKET`.
        stall_seconds: how long running sequences may stall.
        step_seconds: time of a decode step.
        pass_seconds: fixed time of a forward pass, however few tokens it has.
        max_tokens: chunk limit that the memory budget sets.
        context: tokens before the next chunk; the more there are, the longer each token takes.
    """

    token_seconds: float
    stall_seconds: float = 0.2
    step_seconds: float = 0.0
    pass_seconds: float = 0.0
    max_tokens: int = MAX_TOKENS
    context: int = 0
    _later_token_seconds: dict[int, float] = field(default_factory=dict)

    def record_decode(self, seconds: float) -> None:
        """Record the time of a decode step that no prefill interrupted."""
        self.step_seconds = _smooth(self.step_seconds, seconds)
        # A decode step also reads all weights, so it bounds the fixed time of a pass.
        self.pass_seconds = min(self.pass_seconds, seconds)

    def record_prefill(self, tokens: int, seconds: float) -> None:
        """Record the time of a pass over `tokens` prompt tokens."""
        if tokens < MIN_TOKENS:
            return
        token_seconds = max(seconds - self.pass_seconds, seconds * _MIN_TOKEN_SHARE) / tokens
        bucket = self.context // CONTEXT_BUCKET
        if bucket:
            self._later_token_seconds[bucket] = _smooth(self._later_token_seconds.get(bucket, 0.0), token_seconds)
        else:
            self.token_seconds = _smooth(self.token_seconds, token_seconds)

    def tokens(self, *, shared: bool) -> int:
        """Return how many prompt tokens to process in a step; `shared` if running sequences wait for it."""
        seconds = self._shared_seconds() if shared else IDLE_SECONDS
        tokens = int((seconds - self.pass_seconds) / self._token_seconds) // _MULTIPLE * _MULTIPLE
        return min(max(tokens, MIN_TOKENS), self.max_tokens)

    @property
    def pass_tokens(self) -> int:
        """The fixed time of a pass, expressed in tokens."""
        return int(self.pass_seconds / self._token_seconds)

    def batching_seconds(self, tokens: int) -> float:
        """Return how long a first prompt of `tokens` tokens may wait for others to share its pass."""
        return min(_BATCHING_SHARE * (self.pass_seconds + tokens * self.token_seconds), MAX_BATCHING_SECONDS)

    def _shared_seconds(self) -> float:
        target = max(TARGET_STEPS * self.step_seconds, self.pass_seconds + EFFICIENT_TOKENS * self._token_seconds)
        # The decode step after the chunk is part of the stall.
        return min(target, max(self.stall_seconds, (STALL_STEPS - 1) * self.step_seconds))

    @property
    def _token_seconds(self) -> float:
        """The time per token at this context, or at the nearest shorter one that was measured."""
        measured = [bucket for bucket in self._later_token_seconds if bucket <= self.context // CONTEXT_BUCKET]
        return self._later_token_seconds[max(measured)] if measured else self.token_seconds


def _smooth(average: float, value: float) -> float:
    return value if not average else average + _SMOOTHING * (value - average)
