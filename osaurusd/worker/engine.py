"""The generation loop's state: sequences from prompt to last token. Lives on the thread that owns MLX."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from osaurusd import ipc
from osaurusd.worker.decode import MAX_SEQUENCES, BatchedDecoder, Decoder, SerialDecoder, Token, can_batch
from osaurusd.worker.sampling import make_sampler
from osaurusd.worker.text import TextStream

# Prompt tokens a forward pass: large when nothing waits for it, small while other sequences decode.
PREFILL_CHUNK_ALONE = 512
PREFILL_CHUNK_SHARED = 128


@dataclass(eq=False)
class Sequence:
    """One request on its way. `prefilled` counts the prompt tokens that its cache holds."""

    id: int
    prompt: list[int]
    max_tokens: int
    sampling: ipc.Sampling
    text: TextStream
    cache: list[Any] = field(default_factory=list)
    prefilled: int = 0
    generated: int = 0
    announced: bool = False

    @property
    def prefill_left(self) -> int:
        """Prompt tokens still to be processed, without the last one, which the decoder takes."""
        return len(self.prompt) - 1 - self.prefilled


class Engine:
    """Prefills prompts in chunks, taking turns, and decodes all sequences that are ready together.

    Every method runs on the thread that owns MLX, which calls `decode` and `prefill` in turn while there is work; a
    cancelled sequence is gone by the next call.

    Args:
        network: an mlx_lm model.
        end_tokens: token ids that end an answer.
        wired_limit: bytes that MLX may wire, or None to leave its own limit.
    """

    def __init__(self, network: Any, end_tokens: list[int], wired_limit: int | None = None) -> None:
        self._network = network
        self._end_tokens = end_tokens
        self._wired_limit = wired_limit
        self.batched = can_batch(make_prompt_cache(network))
        self._clear()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._prefilling or self._decoding)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def cancel(self, id_: int) -> None:
        """Forget sequence `id_`, wherever it is; one that is not here has ended already."""
        for queue in (self._waiting, self._prefilling):
            for sequence in [s for s in queue if s.id == id_]:
                queue.remove(sequence)
        for uid in [uid for uid, sequence in self._decoding.items() if sequence.id == id_]:
            self._leave(uid)

    def drop_all(self) -> list[int]:
        """Begin anew with nothing; returns the ids of the sequences that are lost."""
        lost = [sequence.id for sequence in (*self._waiting, *self._prefilling, *self._decoding.values())]
        self._clear()
        return lost

    def decode(self) -> list[ipc.Frame]:
        """One decode step for all that decode."""
        if not self._decoding:
            return []
        frames = [frame for token in self._decoder.step() for frame in self._take(token)]
        if any(isinstance(frame, ipc.Done) for frame in frames):
            frames.append(stats())
        return frames

    def prefill(self) -> None:
        """One prefill chunk for the one whose turn it is; one that is through joins those that decode."""
        self._admit()
        if not self._prefilling:
            return
        # It stays in the queue until it is through, so that a failure finds it there.
        sequence = self._prefilling[0]
        self._prefill_chunk(sequence)
        if sequence.prefill_left:
            self._prefilling.rotate(-1)
            return
        uid = self._decoder.join(sequence.cache, sequence.prompt, make_sampler(sequence.sampling))
        self._prefilling.popleft()
        sequence.cache = []
        self._decoding[uid] = sequence

    def _clear(self) -> None:
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._decoding: dict[int, Sequence] = {}
        self._decoder = self._make_decoder()

    def _make_decoder(self) -> Decoder:
        if self.batched:
            return BatchedDecoder(self._network, self._end_tokens, self._wired_limit)
        return SerialDecoder(self._network, self._end_tokens)

    def _admit(self) -> None:
        limit = MAX_SEQUENCES if self.batched else 1
        while self._waiting and len(self._prefilling) + len(self._decoding) < limit:
            sequence = self._waiting.popleft()
            sequence.cache = make_prompt_cache(self._network)
            self._prefilling.append(sequence)

    def _prefill_chunk(self, sequence: Sequence) -> None:
        chunk = min(sequence.prefill_left, PREFILL_CHUNK_SHARED if self._decoding else PREFILL_CHUNK_ALONE)
        if chunk:
            tokens = mx.array(sequence.prompt[sequence.prefilled : sequence.prefilled + chunk])
            self._network(tokens[None], cache=sequence.cache)
            mx.eval([layer.state for layer in sequence.cache])
            sequence.prefilled += chunk

    def _take(self, token: Token) -> Iterator[ipc.Frame]:
        sequence = self._decoding[token.uid]
        if token.end:
            del self._decoding[token.uid]
            yield from _delta(sequence, sequence.text.finish())
            yield _done(sequence, "stop")
            return
        sequence.generated += 1
        text = sequence.text.add(token.token)
        full = sequence.generated >= sequence.max_tokens
        if full and not sequence.text.stopped:
            text += sequence.text.finish()
        yield from _delta(sequence, text)
        if sequence.text.stopped or full:
            self._leave(token.uid)
            yield _done(sequence, "stop" if sequence.text.stopped else "length")

    def _leave(self, uid: int) -> None:
        del self._decoding[uid]
        self._decoder.remove(uid)


def stats() -> ipc.Stats:
    """What MLX holds now."""
    return ipc.Stats(active_bytes=mx.get_active_memory(), cache_bytes=mx.get_cache_memory())


def _delta(sequence: Sequence, text: str) -> Iterator[ipc.Frame]:
    """New text; the first one is sent even if empty, for it says that the prompt is processed."""
    if text or not sequence.announced:
        sequence.announced = True
        yield ipc.Delta(id=sequence.id, text=text)


def _done(sequence: Sequence, reason: ipc.FinishReason) -> ipc.Done:
    return ipc.Done(
        id=sequence.id,
        finish_reason=reason,
        prompt_tokens=len(sequence.prompt),
        completion_tokens=sequence.generated,
    )
