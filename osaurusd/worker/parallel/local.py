"""Running the planner's steps with MLX in this process, on the thread that owns MLX."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine import host_sampler, kv_cache
from osaurusd.worker.engine.batch import BatchEntry, CacheReader, DecodeBatch, TokenOutput
from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.engine.image_encoder import ImageEncoder
from osaurusd.worker.engine.images import FeatureCache
from osaurusd.worker.engine.kv_cache import Cache, CacheLayout, PackedKV
from osaurusd.worker.engine.last_logits import LastLogits
from osaurusd.worker.engine.planner import ImageStages, PrefillChunk, StepPlan
from osaurusd.worker.engine.prefix_cache import PrefixCache, PrefixMatch, Tokens
from osaurusd.worker.engine.request import Positions, PrefillTask, SequenceId
from osaurusd.worker.engine.sampler import compute_logprobs, gather_logprobs
from osaurusd.worker.engine.token_buffer import can_precede_tokens
from osaurusd.worker.frontend.logprobs import Score
from osaurusd.worker.parallel.executor import StepResult

# Attention time for one token of padding, relative to the time of reading as many bytes of weights.
_PADDING_COST_CPU = 6
_PADDING_COST_GPU = 1


@dataclass
class PromptState:
    """A prompt that is being prefilled. `logits` are those after its last token, once it is complete."""

    id: SequenceId
    tokens: Tokens
    match: PrefixMatch | None
    top_logprobs: int
    candidates: list[int]
    images: ImageEncoder | None
    positions: Positions | None
    cache: Cache = field(default_factory=list)
    logits: mx.array | None = None


class LocalExecutor:
    """The executor of a model that fits in one process.

    Args:
        network: an mlx_lm model.
        layout: of its caches.
        prefix_cache: stores the caches of prompts and finished sequences.
        features: stores the features of images.
        clock: measures prefill passes.
        device: the device that MLX uses.

    Attributes:
        batches: the decoding sequences, by the forward pass that they share.
    """

    def __init__(
        self,
        network: Any,
        layout: CacheLayout,
        prefix_cache: PrefixCache,
        features: FeatureCache,
        clock: Callable[[], float],
        device: Device = CPU,
    ) -> None:
        self._network = network
        self._layout = layout
        self._prefix_cache = prefix_cache
        self._features = features
        self._clock = clock
        self._device = device
        self._last_logits = LastLogits(network)
        # Only tokens that are sampled on the host are known late.
        self._late_tokens = not device.is_gpu and can_precede_tokens(network)
        self._answers_first = not device.is_gpu
        self._prompts: dict[SequenceId, PromptState] = {}
        self.batches: list[DecodeBatch] = []

    def clear(self) -> None:
        """Drop all sequences."""
        self._prompts.clear()
        self.batches.clear()

    def begin(self, task: PrefillTask) -> None:
        """Take over a prompt whose prefill begins."""
        choice = task.choices[0]
        top_logprobs = choice.sampling.logprobs or 0
        images = ImageEncoder(self._network, self._features, task.tokens, task.request.images)
        self._prompts[task.id] = PromptState(
            task.id,
            task.tokens,
            task.match,
            top_logprobs,
            choice.candidates,
            images if task.unencoded else None,
            task.positions(),
        )
        task.match = None

    def drop(self, prompt: SequenceId) -> None:
        """Drop a prompt, if it has begun."""
        self._prompts.pop(prompt, None)

    def execute(self, plan: StepPlan) -> StepResult:
        """Run the forward passes of a step."""
        if plan.decode:
            self._merge_batches(plan.decode)
            tokens = {id_: tokens for batch in self.batches for id_, tokens in self._step(batch).items()}
            return StepResult(tokens, steady=all(batch.steady for batch in self.batches))
        if plan.encode is not None:
            return self._encode(plan.encode)
        if len(plan.prefill) > 1:
            return self._prefill_together(plan.prefill)
        return self._prefill(plan.prefill[0])

    def start_decoding(self, prompts: list[SequenceId], entries: list[BatchEntry]) -> None:
        """Sample the first tokens after complete prompts.

        Args:
            prompts: those that one pass has completed.
            entries: one for each prompt, or several that continue a single prompt.
        """
        first, *_ = [self._prompts.pop(prompt) for prompt in prompts]
        assert first.logits is not None, "the prompt is complete"
        cache, logits = first.cache, first.logits
        if len(entries) > len(prompts):
            cache = self._layout.merge([cache] * len(entries))
            logits = mx.concatenate([logits] * len(entries))
        merged = len(entries) > 1
        batch = DecodeBatch(
            self._network,
            self._layout,
            entries,
            cache,
            logits,
            merged=merged,
            device=self._device,
            late_tokens=self._late_tokens,
            answers_first=self._answers_first,
        )
        self.batches.append(batch)

    def take_failed(self) -> dict[SequenceId, str]:
        """Return the sequences whose constraint has failed since the last call, with the reason.

        Their later tokens do not satisfy the constraint.
        """
        failed: dict[SequenceId, str] = {}
        for batch in self.batches:
            failed |= batch.failed
            batch.failed = {}
        return failed

    def remove(self, ids: Collection[SequenceId]) -> None:
        """Remove decoding sequences."""
        for batch in self.batches:
            batch.remove(ids)
        self.batches = [batch for batch in self.batches if batch.ids]

    def store(self, id_: SequenceId, tokens: Tokens) -> None:
        """Store a decoding sequence, which consists of `tokens`, in the prefix cache."""
        if not self._prefix_cache.enabled:
            return
        batch = self._batch(id_)
        reader, cached = batch.reader(id_), batch.length(id_)
        tokens = tokens[:cached]
        self._insert(id_, tokens, reader.pack)
        # If its constraint has failed, the cache has one token more, and so have states.
        if self._layout.has_states and cached == len(tokens):
            self._insert_checkpoint(id_, tokens, reader.copy_states())

    def reader(self, id_: SequenceId) -> CacheReader:
        """Return a reader of a decoding sequence's cache."""
        return self._batch(id_).reader(id_)

    def _batch(self, id_: SequenceId) -> DecodeBatch:
        return next(batch for batch in self.batches if id_ in batch.ids)

    def clear_cache(self) -> None:
        """Return freed buffers to the system."""
        mx.clear_cache()

    def synchronize(self) -> None:
        """Wait for the decode step that is being computed."""
        mx.synchronize()

    # What the executors of a group of ranks override

    def _step(self, batch: DecodeBatch) -> dict[SequenceId, list[TokenOutput]]:
        """Run a step of one batch."""
        return batch.step()

    def _insert(self, _: SequenceId, tokens: Tokens, read: Callable[[int, int], PackedKV], /) -> None:
        """Store a prompt or a sequence in the prefix cache."""
        self._prefix_cache.insert(tokens, read)

    def _insert_checkpoint(self, _: SequenceId, tokens: Tokens, states: list[Any], /) -> None:
        """Store the states of a prompt or a sequence in the prefix cache."""
        self._prefix_cache.insert_checkpoint(tokens, states)

    # Passes

    def _merge_batches(self, plan: tuple[tuple[SequenceId, ...], ...]) -> None:
        """Merge the batches that the plan puts together; batches are never split."""
        if len(plan) == len(self.batches):
            return
        batch_of = {id_: batch for batch in self.batches for id_ in batch.ids}
        self.batches = [batch_of[ids[0]] for ids in plan]
        for batch, ids in zip(self.batches, plan, strict=True):
            for id_ in ids:
                if id_ not in batch.ids:
                    batch.absorb(batch_of[id_])

    def _encode(self, stages: ImageStages) -> StepResult:
        """Compute stages of the vision tower for an image."""
        started = self._clock()
        images = self._prompts[stages.prompt].images
        assert images is not None, "the prompt has images"
        images.encode(stages.image, stages.start, stages.end)
        return StepResult(seconds=self._clock() - started)

    def _prefill(self, chunk: PrefillChunk) -> StepResult:
        started = self._clock()
        prompt = self._restored(chunk.prompt)
        tokens = mx.array(prompt.tokens[chunk.start : chunk.end])[None]
        scores: list[Score] = []
        if chunk.score:
            logits = self._network(tokens, cache=prompt.cache)
            scores = self._score_following(logits[0], prompt, chunk)
            last_logits = logits[:, -1, :]
        else:
            last_logits = self._process(prompt, chunk, tokens)
        mx.eval([last_logits] if chunk.last else [], [layer.state for layer in prompt.cache])
        if chunk.last:
            prompt.logits = last_logits
        done = prompt.tokens[: chunk.end]
        if chunk.store:
            self._insert(chunk.prompt, done, partial(kv_cache.pack, self._layout, prompt.cache))
        if chunk.checkpoint:
            self._insert_checkpoint(chunk.prompt, done, kv_cache.copy_states(prompt.cache))
        return StepResult(
            prompt_scores={chunk.prompt: scores} if scores else {},
            candidate_logprobs=_candidate_logprobs([prompt], last_logits) if chunk.last else {},
            seconds=self._clock() - started,
        )

    def _process(self, prompt: PromptState, chunk: PrefillChunk, tokens: mx.array) -> mx.array:
        """Return the logits after a chunk, which may contain parts of images."""
        inputs = {}
        if prompt.positions is not None:
            inputs["position_ids"] = mx.array(prompt.positions[:, None, chunk.start : chunk.end])
        if prompt.images is None:
            return self._last_logits(tokens, prompt.cache, **inputs)
        inputs |= prompt.images.inputs(chunk.start, chunk.end)
        with prompt.images.attention(prompt.cache, chunk.start, chunk.end):
            logits = self._last_logits(mx.maximum(tokens, 0), prompt.cache, **inputs)
        prompt.images.release(chunk.end)
        return logits

    def _prefill_together(self, chunks: tuple[PrefillChunk, ...]) -> StepResult:
        """Complete several prompts. Their last tokens have a pass of their own, which is cheaper than all logits."""
        started = self._clock()
        prompts = [self._restored(chunk.prompt) for chunk in chunks]
        cache = self._layout.merge([prompt.cache for prompt in prompts])
        parts = [prompt.tokens[chunk.start : -1] for prompt, chunk in zip(prompts, chunks, strict=True)]
        self._prefill_padded(cache, parts)
        last = mx.array(np.array([prompt.tokens[-1:] for prompt in prompts]))
        logits = self._network(last, cache=cache)[:, -1, :]
        mx.eval(logits, [layer.state for layer in cache])
        seconds = self._clock() - started
        # `start_decoding` takes the merged cache from the first prompt.
        prompts[0].cache, prompts[0].logits = cache, logits
        for row, (prompt, chunk) in enumerate(zip(prompts, chunks, strict=True)):
            if chunk.store:
                read = partial(kv_cache.pack_row, self._layout, cache, row, len(prompt.tokens))
                self._insert(prompt.id, prompt.tokens, read)
        return StepResult(candidate_logprobs=_candidate_logprobs(prompts, logits), seconds=seconds)

    def _prefill_padded(self, cache: Cache, parts: list[Tokens]) -> None:
        """Process token ranges of different lengths, without logits."""
        lengths = [len(part) for part in parts]
        width = max(lengths)
        if not width:
            return
        padding = [width - length for length in lengths]
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=padding)
        rows = [np.pad(part, (0, count)) for part, count in zip(parts, padding, strict=True)]
        self._network(mx.array(np.stack(rows)), cache=cache)
        for layer in cache:
            layer.finalize()

    def _score_following(self, logits: mx.array, prompt: PromptState, chunk: PrefillChunk) -> list[Score]:
        """Return the scores of the tokens that follow those of a chunk, whose logits [tokens, vocabulary] are given."""
        following = prompt.tokens[chunk.start + 1 : chunk.end + 1]
        count = len(following)
        if not count:
            return []
        rows = list(range(count))
        if self._device.is_gpu:
            return compute_logprobs(logits[:count], mx.array(following), prompt.top_logprobs, rows).scores()
        on_host = host_sampler.to_numpy(logits[:count])
        return host_sampler.compute_logprobs(on_host, following, prompt.top_logprobs, rows).scores()

    def _restored(self, id_: SequenceId) -> PromptState:
        """Return a prompt, after restoring what the prefix cache has of it."""
        prompt = self._prompts[id_]
        if (match := prompt.match) is not None:
            prompt.cache = kv_cache.restore(self._layout, self._network, match.blocks, match.length, match.states)
            prompt.match = None
        return prompt


def padding_per_pass(layout: CacheLayout, weights_bytes: int, device: Device) -> int:
    """Return how many tokens of padding cost as much as a forward pass."""
    cost = _PADDING_COST_GPU if device.is_gpu else _PADDING_COST_CPU
    return weights_bytes // (max(layout.bytes_per_token, 1) * cost)


def _candidate_logprobs(prompts: Sequence[PromptState], logits: mx.array) -> dict[SequenceId, list[float]]:
    """Return the log-probabilities of the prompts' candidates, given the logits [prompts, vocabulary] after them."""
    rows = [row for row, prompt in enumerate(prompts) if prompt.candidates]
    if not rows:
        return {}
    logprobs = gather_logprobs(logits[mx.array(rows)], [prompts[row].candidates for row in rows])
    return {prompts[row].id: values for row, values in zip(rows, logprobs, strict=True)}
