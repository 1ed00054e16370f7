"""How many prompt tokens to process at a time: few while others wait for their next token, many when nobody does."""

from dataclasses import dataclass, field

# Running streams stall no longer than `stall_seconds` or this many of their own steps, whichever is longer ...
STALL_STEPS = 6
# ... and no longer than this many of their steps where passes that short are worth their while.
AIM_STEPS = 4

# A pass takes its time for reading the weights, however few tokens it has: fewer than these are not worth it.
WORTHWHILE_TOKENS = 64

# With nobody waiting: long passes, but a cancelled prompt or a new one is looked at this often.
ALONE_SECONDS = 0.8

CONTEXT_STEP = 512
"""How many tokens of context make a difference to be measured apart."""

LEAST_TOKENS = 16
MOST_TOKENS = 2048
_MULTIPLE = 16

# How much a new measurement counts.
_WEIGHT = 0.3

# What a pass takes for its tokens is at least this part of its time, if the time without any was measured too long.
_LEAST_FOR_TOKENS = 0.25

# A first prompt waits for those that come with it for this part of the time that it would take, but not longer than ...
_GATHERING = 0.25
# ... so many seconds.
MOST_GATHERING_SECONDS = 0.05


@dataclass
class Pace:
    """Seconds that passes take, as measured lately, and how long streams may stall.

    A pass over prompt tokens takes `pass_seconds`, and `token_seconds` more for each of them; the latter is of the
    first `CONTEXT_STEP`. `most_tokens` is what memory allows a pass to have. `context` is how many tokens there are
    before those in question: the more there are, the longer each takes.
    """

    token_seconds: float
    stall_seconds: float = 0.2
    step_seconds: float = 0.0
    pass_seconds: float = 0.0
    most_tokens: int = MOST_TOKENS
    context: int = 0
    _later_seconds: dict[int, float] = field(default_factory=dict)

    def decoded(self, seconds: float) -> None:
        """A decode step took this long, with nothing else in between."""
        self.step_seconds = _blend(self.step_seconds, seconds)
        # A step reads all weights too, and does more besides.
        self.pass_seconds = min(self.pass_seconds, seconds)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A pass over `tokens` prompt tokens took this long."""
        if tokens < LEAST_TOKENS:
            return
        each = max(seconds - self.pass_seconds, seconds * _LEAST_FOR_TOKENS) / tokens
        step = self.context // CONTEXT_STEP
        if step:
            self._later_seconds[step] = _blend(self._later_seconds.get(step, 0.0), each)
        else:
            self.token_seconds = _blend(self.token_seconds, each)

    def tokens(self, *, shared: bool) -> int:
        """Prompt tokens to process before the next decode step; `shared` if there are sequences that wait for it."""
        seconds = self._shared_seconds() if shared else ALONE_SECONDS
        tokens = int((seconds - self.pass_seconds) / self._token_seconds) // _MULTIPLE * _MULTIPLE
        return min(max(tokens, LEAST_TOKENS), self.most_tokens)

    @property
    def pass_tokens(self) -> int:
        """How many tokens more could have been processed if a pass had been left out."""
        return int(self.pass_seconds / self._token_seconds)

    def gathering_seconds(self, tokens: int) -> float:
        """How long a first prompt of so many tokens may wait for others, to be processed together with them."""
        return min(_GATHERING * (self.pass_seconds + tokens * self.token_seconds), MOST_GATHERING_SECONDS)

    def _shared_seconds(self) -> float:
        aim = max(AIM_STEPS * self.step_seconds, self._seconds(WORTHWHILE_TOKENS))
        # The step that follows is part of the stall.
        return min(aim, max(self.stall_seconds, (STALL_STEPS - 1) * self.step_seconds))

    def _seconds(self, tokens: int) -> float:
        return self.pass_seconds + tokens * self._token_seconds

    @property
    def _token_seconds(self) -> float:
        """At this context, or at the nearest shorter one that is known."""
        known = [step for step in self._later_seconds if step <= self.context // CONTEXT_STEP]
        return self._later_seconds[max(known)] if known else self.token_seconds


def _blend(before: float, now: float) -> float:
    return now if not before else before + _WEIGHT * (now - before)
