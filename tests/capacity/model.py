"""The capacity model: a closed queue of users that think, and of a batch whose speed depends on its size.

With `n` requests on the host, `b = min(n, B)` of them decode. The host spends `prefill(b) + tokens * step(b) / b` on
each request, so it completes `1 / (prefill(b) + tokens * step(b) / b)` requests per second. Users arrive one by one
after thinking. The probability of each `n` follows (a birth-death process), and from these everything else.
"""

import math
from dataclasses import dataclass

from osaurusd.config import Worker
from osaurusd.worker.engine.prefill_queue import LAST_PASS_TOKENS
from tests.capacity.figures import Figures

MAX_WAITING = Worker().max_waiting
"""Further requests are rejected with `queue_full`."""


@dataclass(frozen=True)
class Kind:
    """What one kind of user does, over and over.

    Attributes:
        prompt_tokens: length of the prompt.
        cached: share of the prompt that is in the prefix cache.
        output_tokens: length of the response.
        think_seconds: time until the next request.
        min_tokens_per_second: the least speed that the user accepts.
        max_seconds: the longest time to the end of a response.
    """

    name: str
    prompt_tokens: int
    cached: float
    output_tokens: int
    think_seconds: float
    min_tokens_per_second: float = 0.0
    max_seconds: float = math.inf

    @property
    def new_tokens(self) -> int:
        """The prompt tokens that are not in the prefix cache."""
        return round(self.prompt_tokens * (1 - self.cached))

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


KINDS = (
    # Reads the answer at 7 tokens per second, and writes a follow-up question.
    Kind("chat", 1200, 0.75, 250, 60.0, min_tokens_per_second=7),
    # One tool call after another; each step adds the result of a tool to a long conversation.
    Kind("agent", 12_000, 0.95, 200, 5.0, min_tokens_per_second=15),
    # Code completion while typing: useless if it comes too late.
    Kind("completion", 600, 0.5, 30, 5.0, max_seconds=2),
)


@dataclass(frozen=True)
class Load:
    """A number of users of one kind on one host, in equilibrium.

    Attributes:
        requests_per_second: completed requests of all users.
        seconds: mean time from a request to the end of its response.
        tokens_per_second: mean speed of a response once it has begun.
        batch: mean number of sequences that decode or are prefilled.
        rejected: share of the time in which the queue is full.
    """

    requests_per_second: float
    seconds: float
    tokens_per_second: float
    batch: float
    rejected: float


def predict(figures: Figures, kind: Kind, users: int, memory_bytes: int) -> Load | None:
    """Return the equilibrium; None if not even one request fits into memory."""
    batch = figures.max_sequences(memory_bytes, kind.context_tokens)
    if not batch:
        return None
    last = min(users, batch + MAX_WAITING)
    rates = [0.0] + [completions(figures, kind, min(count, batch)) for count in range(1, last + 1)]
    # Relative to the state without requests; logarithms, because the weights of states differ by hundreds of digits.
    weights = [0.0]
    for count in range(1, last + 1):
        arrivals = (users - count + 1) / kind.think_seconds
        weights.append(weights[-1] + math.log(arrivals / rates[count]))
    largest = max(weights)
    shares = [math.exp(weight - largest) for weight in weights]
    shares = [share / sum(shares) for share in shares]
    throughput = sum(share * rate for share, rate in zip(shares, rates, strict=True))
    present = sum(share * count for count, share in enumerate(shares))
    running = sum(share * min(count, batch) for count, share in enumerate(shares))
    # Little's law: the mean time in a place is the mean number there, divided by the throughput.
    decoding_seconds = running / throughput - prefill_seconds(figures, kind, max(round(running), 1))
    return Load(
        requests_per_second=throughput,
        seconds=present / throughput,
        tokens_per_second=kind.output_tokens / max(decoding_seconds, figures.step_seconds(1)),
        batch=running,
        rejected=shares[-1] if last < users else 0.0,
    )


def completions(figures: Figures, kind: Kind, batch: int) -> float:
    """Return how many requests per second complete while so many are in the batch."""
    decode = kind.output_tokens * figures.step_seconds(batch) / batch
    return 1 / (prefill_seconds(figures, kind, batch) + decode)


def prefill_seconds(figures: Figures, kind: Kind, batch: int) -> float:
    """Return the time of the prompt, in chunks whose size the worker chooses for a batch of this size."""
    chunk_tokens = figures.chunk_sizer(batch).tokens(shared=batch > 1)
    # The last pass is a short one.
    passes = 1 + math.ceil(max(kind.new_tokens - LAST_PASS_TOKENS, 0) / chunk_tokens)
    return kind.new_tokens / figures.prefill_rate + passes * figures.pass_seconds


def max_users(figures: Figures, kind: Kind, memory_bytes: int) -> int:
    """Return how many users one host serves with the speed that they accept."""
    low, high = 0, 1
    while accepted(predict(figures, kind, high, memory_bytes), kind) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if accepted(predict(figures, kind, middle, memory_bytes), kind):
            low = middle
        else:
            high = middle
    return low


def accepted(load: Load | None, kind: Kind) -> bool:
    """Whether users of this kind accept a load: it is fast enough, and requests hardly ever wait or are rejected."""
    if load is None:
        return False
    fast = load.tokens_per_second >= kind.min_tokens_per_second and load.seconds <= kind.max_seconds
    waits = load.seconds - load.batch / load.requests_per_second
    return fast and load.rejected < 0.001 and waits < 1
