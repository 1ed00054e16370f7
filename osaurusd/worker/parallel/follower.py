"""The other ranks of a group: they repeat what rank 0 does, in the same order, and decide nothing.

They run the same code as rank 0, so that all ranks compute the same passes in the same order. Only the tokens are those
of rank 0: different chips may round differently.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine.batch import BatchEntry
from osaurusd.worker.engine.device import Device
from osaurusd.worker.engine.images import FeatureCache
from osaurusd.worker.engine.kv_cache import CacheLayout, PackedKV
from osaurusd.worker.engine.planner import StepPlan
from osaurusd.worker.engine.prefix_cache import PrefixCache, PrefixMatch, Tokens
from osaurusd.worker.engine.request import SequenceId
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.parallel import operations
from osaurusd.worker.parallel.group import RankExecutor
from osaurusd.worker.parallel.local import PromptState
from osaurusd.worker.parallel.operations import Operation

# The tokens of rank 0 replace those that a follower samples, so it samples in the cheapest way.
_GREEDY = SamplingParams(temperature=0)


class FollowerExecutor(RankExecutor):
    """Executes the operations of plans.

    Args:
        network: this rank's part of an mlx_lm model.
        layout: of its caches.
        clock: measures prefill passes.
        device: the device that MLX uses.
    """

    def __init__(self, network: Any, layout: CacheLayout, clock: Callable[[], float], device: Device) -> None:
        # Rank 0 has the index of the prefix cache; here, its arrays have numbers.
        super().__init__(network, layout, PrefixCache(0, has_states=False), FeatureCache(0), clock, device)
        self._stored: dict[int, list[Any]] = {}
        self._readers: dict[SequenceId, Callable[[int, int], PackedKV]] = {}
        self._states: dict[SequenceId, list[Any]] = {}

    @property
    def prefix_cache_bytes(self) -> int:
        """The size of the blocks and states of the prefix cache."""
        return sum(int(array.nbytes) for arrays in self._stored.values() for array in arrays)

    def run(self, operation: Operation, blobs: Sequence[bytes]) -> None:
        """Execute an operation, and wait until it is computed."""
        match operation:
            case operations.Store() | operations.StoreStates():
                self._keep(operation)
            case operations.Begin():
                self._take_over(operation, blobs[0])
            case operations.Release():
                for number in operation.numbers:
                    del self._stored[number]
            case operations.ClearCache():
                self.clear_cache()
            case _:
                self._forget_sources()
                self._step_with(operation)

    def _step_with(self, operation: Operation) -> None:
        """Execute an operation that changes the caches of prompts or sequences."""
        match operation:
            case operations.Decode():
                self._decode(operation)
            case operations.Prefill():
                self.execute(StepPlan(prefill=operation.chunks))
            case operations.Start():
                entries = [BatchEntry(id_, SamplingState(_GREEDY), length) for id_, length in operation.sequences]
                self.start_decoding(operation.prompts, entries)
            case operations.Merge():
                self._merge_batches(operation.groups)
            case operations.Remove():
                self.remove(operation.ids)
            case operations.Drop():
                self.drop(operation.prompt)
            case operations.Clear():
                self.clear()

    def _decode(self, operation: operations.Decode) -> None:
        batch = self.batches[operation.batch]
        batch.step(operation.tokens)
        batch.next_tokens()  # waits for the pass

    def _take_over(self, operation: operations.Begin, tokens: bytes) -> None:
        blocks = [self._stored[number] for number in operation.blocks]
        states = None if operation.states is None else self._stored[operation.states]
        self._prompts[operation.prompt] = PromptState(
            operation.prompt,
            np.frombuffer(tokens, "<i4").astype(np.int32),
            PrefixMatch(operation.length, operation.length, blocks, states),
            top_logprobs=0,
            candidates=[],
            images=None,
            positions=None,
        )

    def _keep(self, operation: operations.Store | operations.StoreStates) -> None:
        source = operation.source
        if isinstance(operation, operations.StoreStates):
            states = self._states.pop(source, None)
            self._stored[operation.number] = self.reader(source).copy_states() if states is None else states
            return
        read = self._readers.get(source) or self.reader(source).pack
        for number, start, end in operation.blocks:
            self._stored[number] = read(start, end)
        mx.eval([self._stored[number] for number, _, _ in operation.blocks])

    def _insert(self, source: SequenceId, _: Tokens, read: Callable[[int, int], PackedKV], /) -> None:
        """Remember how to read a prompt; rank 0 says what to keep of it."""
        self._readers[source] = read

    def _insert_checkpoint(self, source: SequenceId, _: Tokens, states: list[Any], /) -> None:
        self._states[source] = states

    def _forget_sources(self) -> None:
        self._readers.clear()
        self._states.clear()
