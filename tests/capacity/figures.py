"""Measured figures of a model on one host, from the JSON of `osaurusctl bench` and `osaurusctl show`."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import osaurusd.worker.lean_imports  # noqa: F401  the next imports take a second more without it
from osaurusd.config import Worker
from osaurusd.worker.engine.chunk_sizer import ChunkSizer
from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.memory import MemoryBudget
from osaurusd.worker.engine.planner import MAX_SEQUENCES

STALL_SECONDS = Worker().stall_seconds


@dataclass(frozen=True)
class Figures:
    """One model on one host.

    Attributes:
        decode_rates: tokens per second of all sequences together, by their number.
        prefill_rate: prompt tokens per second.
        weights_bytes: memory for the weights.
        kv_bytes_per_token: memory for each token of context.
        on_gpu: whether the model runs on a GPU.
    """

    model: str
    decode_rates: Mapping[int, float]
    prefill_rate: float
    weights_bytes: int
    kv_bytes_per_token: int
    on_gpu: bool = True

    @classmethod
    def from_reports(cls, reports: Iterable[Mapping[str, Any]], details: Mapping[str, Any]) -> "Figures":
        """Combine reports of `osaurusctl bench --json` with that of `osaurusctl show --json`.

        Noise only makes a measurement slower, so the fastest one counts.
        """
        reports = list(reports)
        rates: dict[int, float] = {}
        for result in (result for report in reports for result in report["decode"]):
            if result["tokens_per_second"] is not None:
                rates[result["streams"]] = max(result["tokens_per_second"], rates.get(result["streams"], 0.0))
        return cls(
            model=reports[0]["model"],
            decode_rates=rates,
            prefill_rate=max(report["prefill_tokens_per_second"] for report in reports),
            weights_bytes=details["weights_bytes"],
            kv_bytes_per_token=details["kv_bytes_per_token"],
            on_gpu=reports[0]["device"] not in (None, "cpu"),
        )

    @classmethod
    def load(cls, bench: Path, details: Path) -> "Figures":
        """Read the JSON lines of several benchmarks and the details of the model."""
        reports = [json.loads(line) for line in bench.read_text().splitlines() if line.strip()]
        return cls.from_reports(reports, json.loads(details.read_text()))

    def step_seconds(self, sequences: int) -> float:
        """Return the time of a decode step of so many sequences, interpolated between the measured numbers."""
        counts = sorted(self.decode_rates)
        seconds = [count / self.decode_rates[count] for count in counts]
        # Noise must not make a larger batch faster.
        seconds = [max(seconds[: index + 1]) for index in range(len(seconds))]
        if sequences <= counts[0]:
            return seconds[0]
        index = min(bisect_left(counts, sequences), len(counts) - 1)
        if index == 0:
            return seconds[0] * sequences / counts[0]
        low, high = counts[index - 1], counts[index]
        slope = (seconds[index] - seconds[index - 1]) / (high - low)
        return seconds[index - 1] + slope * (sequences - low)

    def max_sequences(self, memory_bytes: int, context_tokens: int) -> int:
        """Return how many sequences of a length the worker runs together in so much memory.

        A sequence that joins a batch needs a copy of the whole batch for a moment, so this is about half of what fits.
        """
        memory = self.memory_budget(memory_bytes, self.chunk_sizer(MAX_SEQUENCES))
        counts = range(1, MAX_SEQUENCES + 1)
        return sum(memory.fits([context_tokens] * (count - 1), [context_tokens]) for count in counts)

    def memory_budget(self, memory_bytes: int, sizer: ChunkSizer) -> MemoryBudget:
        """Build the memory budget of a worker; the intermediates of prefill passes are neglected."""
        layout = CacheLayout((), self.kv_bytes_per_token, (), 0, has_states=False, batchable=True)
        return MemoryBudget(layout, self.weights_bytes, memory_bytes, 0, 0, sizer)

    def chunk_sizer(self, sequences: int) -> ChunkSizer:
        """Build the chunk sizer of a worker after it has measured decode steps of so many sequences."""
        return ChunkSizer(
            1 / self.prefill_rate,
            STALL_SECONDS,
            step_seconds=self.step_seconds(sequences),
            pass_seconds=self.pass_seconds,
            on_gpu=self.on_gpu,
        )

    @property
    def pass_seconds(self) -> float:
        """The fixed time of a forward pass, which a decode step of one sequence hardly exceeds."""
        return self.step_seconds(1)
