"""Prefill chunk sizes: short while other sequences wait for their next token, long while none does.

Times are measured while other programs may be running, which only ever makes them longer. So shorter times are trusted
more than longer ones.
"""

from dataclasses import dataclass, field

# Running sequences stall no longer than `stall_seconds` or this many of their decode steps, whichever is longer ...
STALL_STEPS = 6
# ... and no longer than this many of their steps if passes that short are efficient.
TARGET_STEPS = 4

# Reading the weights dominates passes over fewer tokens than this.
EFFICIENT_TOKENS = 64

# Without running sequences passes are long, but on a CPU cancellations and new requests are noticed this often.
IDLE_SECONDS = 0.8

# Prompts that arrive together are processed in passes of up to this many tokens, unless they take longer than this. The
# time is generous, so that the number of passes does not depend on how busy the machine is. It matters only below 100
# tokens per second: on two slow cores, 16 prompts of 35 tokens take 4 to 5 s, and 9 to 10 s beside a busy process. If
# the first of them decode alone, all together have 0.7 to 0.8 of the throughput, and the last one waits longer.
BURST_PASS_TOKENS = 512
BURST_SECONDS = 10.0

# Token times are measured separately for each multiple of this context length: on a CPU, a token takes about a tenth
# longer for each 128 tokens before it.
CONTEXT_BUCKET = 128

MIN_TOKENS = 16
MAX_TOKENS = 2048
_MULTIPLE = 16

# More than any vision tower has.
MAX_STAGES = 2**16

# A vision tower takes longer than this for any stage; features from the cache take less.
MIN_IMAGE_SECONDS = 1e-4

# Weights of a new measurement in the moving average, if it is shorter or longer than the average.
_SMOOTHING_SHORTER = 0.5
_SMOOTHING_LONGER = 0.15

# On a GPU, passes beside running sequences may take this share of the time that these may stall.
_GPU_STALL_SHARE = 0.5

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
        on_gpu: whether the model runs on a GPU, where long passes are efficient and soon done.
        max_tokens: chunk limit that the memory budget sets for this context.
        context: tokens before the next chunk; the more there are, the longer each token takes.
    """

    token_seconds: float
    stall_seconds: float = 0.2
    step_seconds: float = 0.0
    pass_seconds: float = 0.0
    on_gpu: bool = False
    max_tokens: int = MAX_TOKENS
    context: int = 0
    _patch_seconds: float = 0.0
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
        return min(self._shared_tokens() if shared else self._idle_tokens(), self.max_tokens)

    def image_stages(self, patches: int, *, shared: bool) -> int:
        """Return how many stages of the vision tower to compute in a step for an image of this size, at least one."""
        if not shared and self.on_gpu:
            return MAX_STAGES
        if not self._patch_seconds:
            return 1  # to measure it
        seconds = self._shared_seconds if shared else IDLE_SECONDS
        return max(int(seconds / (self._patch_seconds * patches)), 1)

    def record_image(self, patches: int, stages: int, seconds: float) -> int:
        """Record the time of stages of the vision tower, and return it in tokens."""
        # Cached features take no time.
        if seconds > MIN_IMAGE_SECONDS:
            self._patch_seconds = _smooth(self._patch_seconds, seconds / (patches * stages))
        return int(seconds / self._token_seconds)

    @property
    def burst_pass_tokens(self) -> int:
        """How many tokens, padding included, a pass may have if it completes several prompts that arrived together."""
        return min(self.largest_pass, self.max_tokens)

    @property
    def burst_tokens(self) -> int:
        """How many tokens of other prompts may be processed before the first complete one decodes."""
        return min(2 * BURST_PASS_TOKENS, self._tokens_within(BURST_SECONDS))

    @property
    def largest_pass(self) -> int:
        """How many tokens a pass may have as far as memory permits."""
        return max(self._idle_tokens(), min(BURST_PASS_TOKENS, self._tokens_within(BURST_SECONDS)))

    @property
    def pass_tokens(self) -> int:
        """The fixed time of a pass, expressed in tokens."""
        return int(self.pass_seconds / self._token_seconds)

    def batching_seconds(self, tokens: int) -> float:
        """Return how long a first prompt of `tokens` tokens may wait for others to share its pass."""
        return min(_BATCHING_SHARE * (self.pass_seconds + tokens * self.token_seconds), MAX_BATCHING_SECONDS)

    def _idle_tokens(self) -> int:
        return MAX_TOKENS if self.on_gpu else self._tokens_within(IDLE_SECONDS)

    def _shared_tokens(self) -> int:
        return self._tokens_within(self._shared_seconds)

    @property
    def _shared_seconds(self) -> float:
        """How long a pass may take while running sequences wait for it."""
        target = max(TARGET_STEPS * self.step_seconds, self.pass_seconds + EFFICIENT_TOKENS * self._token_seconds)
        if self.on_gpu:
            target = max(target, _GPU_STALL_SHARE * self.stall_seconds)
        # The decode step after the chunk is part of the stall.
        return min(target, max(self.stall_seconds, (STALL_STEPS - 1) * self.step_seconds))

    def _tokens_within(self, seconds: float) -> int:
        tokens = int((seconds - self.pass_seconds) / self._token_seconds) // _MULTIPLE * _MULTIPLE
        return min(max(tokens, MIN_TOKENS), MAX_TOKENS)

    @property
    def _token_seconds(self) -> float:
        """The time per token at this context, or at the nearest shorter one that was measured."""
        measured = [bucket for bucket in self._later_token_seconds if bucket <= self.context // CONTEXT_BUCKET]
        return self._later_token_seconds[max(measured)] if measured else self.token_seconds


def _smooth(average: float, value: float) -> float:
    if not average:
        return value
    return average + (_SMOOTHING_SHORTER if value < average else _SMOOTHING_LONGER) * (value - average)
