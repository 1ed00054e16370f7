"""Decoding: one step yields at most one token for every sequence that has joined."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from osaurusd.worker.sampling import Sampler

MAX_SEQUENCES = 32

# The engine counts each sequence's tokens; the generator wants a number too.
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class Token:
    """What a step gave sequence `uid`. `end` means that `token` is an end token and no text."""

    uid: int
    token: int
    end: bool


class Decoder(Protocol):
    """Sequences join with a prefilled cache and their last prompt token, and leave when removed or ended."""

    def join(self, cache: list[Any], prompt: list[int], sampler: Sampler) -> int:
        """Add a sequence whose cache holds all of `prompt` but its last token; return its uid."""

    def step(self) -> list[Token]:
        """Decode one token for every sequence; a sequence that gets an end token has left."""

    def remove(self, uid: int) -> None: ...


def can_batch(cache: list[Any]) -> bool:
    """Whether mlx_lm can merge caches of this model's kind."""
    return all(hasattr(layer, "merge") for layer in cache)


class BatchedDecoder:
    """All sequences in one forward pass a step, joining and leaving between steps."""

    def __init__(self, model: Any, end_tokens: Sequence[int], wired_limit: int | None) -> None:
        self._generator = BatchGenerator(
            model,
            stop_tokens=[[token] for token in end_tokens],
            completion_batch_size=MAX_SEQUENCES,
            # The stream made at mlx_lm's import belongs to another thread's default; this one is the caller's.
            stream=mx.default_stream(mx.default_device()),
        )
        if wired_limit is not None:
            # The constructor wires as much as the GPU recommends for one process; several workers share that.
            mx.set_wired_limit(wired_limit)

    def join(self, cache: list[Any], prompt: list[int], sampler: Sampler) -> int:
        (uid,) = self._generator.insert(
            [prompt[-1:]], max_tokens=[_NO_LIMIT], caches=[cache], all_tokens=[prompt[:-1]], samplers=[sampler]
        )
        return int(uid)

    def step(self) -> list[Token]:
        _, responses = self._generator.next()
        return [Token(r.uid, r.token, r.finish_reason == "stop") for r in responses]

    def remove(self, uid: int) -> None:
        self._generator.remove([uid])


class SerialDecoder:
    """One sequence at a time, for models whose caches cannot be merged into a batch.

    Like the batched generator it has the next token under way while this one is handed out.
    """

    def __init__(self, model: Any, end_tokens: Sequence[int]) -> None:
        self._model = model
        self._end_tokens = frozenset(end_tokens)
        self._uid = 0
        self._running: Iterator[int] | None = None

    def join(self, cache: list[Any], prompt: list[int], sampler: Sampler) -> int:
        if self._running is not None:
            raise RuntimeError("a serial decoder runs one sequence at a time")
        self._uid += 1
        self._running = self._tokens(cache, prompt[-1], sampler)
        return self._uid

    def step(self) -> list[Token]:
        if self._running is None:
            return []
        token = next(self._running)
        end = token in self._end_tokens
        if end:
            self._running = None
        return [Token(self._uid, token, end)]

    def remove(self, uid: int) -> None:
        if uid == self._uid:
            self._running = None

    def _tokens(self, cache: list[Any], last: int, sampler: Sampler) -> Iterator[int]:
        following = self._next(mx.array([last]), cache, sampler)
        while True:
            current, following = following, self._next(following, cache, sampler)
            yield int(current.item())  # type: ignore[arg-type]

    def _next(self, token: mx.array, cache: list[Any], sampler: Sampler) -> mx.array:
        logits = self._model(token[None], cache=cache)[:, -1, :]
        sampled = sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.async_eval(sampled)  # type: ignore[no-untyped-call]
        return sampled
