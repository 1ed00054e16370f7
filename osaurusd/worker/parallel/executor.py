"""The interface between the engine and the place where its steps run."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from osaurusd.worker.engine.batch import BatchEntry, TokenOutput
from osaurusd.worker.engine.planner import StepPlan
from osaurusd.worker.engine.prefix_cache import Tokens
from osaurusd.worker.engine.request import PrefillTask, SequenceId
from osaurusd.worker.frontend.logprobs import Score


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        tokens: the new tokens of each decoding sequence, in order.
        prompt_scores: by prompt, the scores of the tokens that follow those of a scored chunk.
        candidate_logprobs: by complete prompt, the log-probabilities of its candidates.
        seconds: the time of a prefill pass.
        steady: whether a decode step started one pass of each batch, so that its time is representative.
    """

    tokens: dict[SequenceId, list[TokenOutput]] = field(default_factory=dict)
    prompt_scores: dict[SequenceId, list[Score]] = field(default_factory=dict)
    candidate_logprobs: dict[SequenceId, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    steady: bool = True


class Executor(Protocol):
    """Holds the caches of all sequences and runs the forward passes. Used on the thread that owns MLX."""

    def clear(self) -> None:
        """Drop all sequences."""

    def begin(self, task: PrefillTask) -> None:
        """Take over a prompt whose prefill begins."""

    def drop(self, prompt: SequenceId) -> None:
        """Drop a prompt, if it has begun."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Run the forward passes of a step."""

    def start_decoding(self, prompts: list[SequenceId], entries: list[BatchEntry]) -> None:
        """Sample the first tokens after complete prompts; see `LocalExecutor.start_decoding`."""

    def remove(self, ids: Collection[SequenceId]) -> None:
        """Remove decoding sequences."""

    def store(self, id_: SequenceId, tokens: Tokens) -> None:
        """Store a decoding sequence, which consists of `tokens`, in the prefix cache."""

    def take_failed(self) -> dict[SequenceId, str]:
        """Return the sequences whose constraint failed since the last call, with the reasons."""

    def clear_cache(self) -> None:
        """Return freed buffers to the system, and everything that the prefix cache has dropped."""

    def synchronize(self) -> None:
        """Wait for the step that is being computed."""
