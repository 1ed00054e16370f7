"""Building engine requests that compare candidates instead of generating."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from osaurusd.inference.events import Event, Scored
from osaurusd.inference.request import SamplingParams, ScoringRequest
from osaurusd.worker.engine.request import Choice, EngineRequest
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend.candidates import CandidateTree
from osaurusd.worker.frontend.output_parser import SequenceOutput
from osaurusd.worker.frontend.prompt_encoder import PromptEncoder
from osaurusd.worker.frontend.text_assembler import ContentRules

Render = Callable[[list[list[float]]], Event]
"""Renders the log-probabilities of the candidates of each continuation."""


class ScoringBuilder:
    """Builds engine requests for the scoring requests of one model. Safe on any thread.

    Args:
        tokenizer: mlx_lm's tokenizer wrapper.
        encoder: encodes the prompts.
    """

    def __init__(self, tokenizer: Any, encoder: PromptEncoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder

    def build(self, id_: int, request: ScoringRequest, render: Render | None = None) -> EngineRequest:
        """Build an engine request.

        Args:
            id_: its id.
            request: what to compare.
            render: renders the result; by default as `Scored`.

        Raises:
            OsaurusError: the request is invalid.
        """
        encoded = self._encoder.encode_continuations(request)
        trees = [CandidateTree(candidates) for candidates in encoded.candidates]
        branches = [
            ([*suffix, *beginning], tokens, tree.size > 1)
            for tree, suffix in zip(trees, encoded.continuations, strict=True)
            for beginning, tokens in tree.branches()
        ]
        # Nothing is generated, so that all choices can share an output, which stays empty.
        output = SequenceOutput(self._tokenizer.detokenizer, ContentRules())
        return EngineRequest(
            id=id_,
            prompt_tokens=encoded.prompt,
            choices=[
                Choice(
                    index,
                    SamplingState(SamplingParams(temperature=0), index=index),
                    output,
                    prompt_suffix=suffix,
                    shares_suffix=shared,
                    candidates=tokens,
                )
                for index, (suffix, tokens, shared) in enumerate(branches)
            ],
            max_tokens=0,
            shared_prefix_length=len(encoded.prompt),
            scored=lambda logprobs: (render or _scored)(_combine(trees, logprobs)),
        )


def _scored(logprobs: list[list[float]]) -> Event:
    return Scored(logprobs=logprobs)


def _combine(trees: Sequence[CandidateTree], logprobs: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the log-probabilities of the candidates, given those of the tokens of all branches."""
    remaining = iter(logprobs)
    return [tree.combine(list(islice(remaining, tree.size))) for tree in trees]
