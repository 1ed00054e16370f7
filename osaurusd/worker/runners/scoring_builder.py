"""Building engine requests that compare candidates instead of generating."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from osaurusd.errors import OsaurusError
from osaurusd.inference.events import CandidateScores
from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import messages
from osaurusd.worker.engine.request import Choice, EngineRequest, ScoringEvent
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend import reranking
from osaurusd.worker.frontend.candidates import CandidateTree
from osaurusd.worker.frontend.output_parser import SequenceOutput
from osaurusd.worker.frontend.prompt_encoder import EncodedContinuations, PromptEncoder
from osaurusd.worker.frontend.text_assembler import ContentRules

Render = Callable[[list[list[float]]], ScoringEvent]
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

    def build_scoring(self, frame: messages.Score) -> EngineRequest:
        """Build the request for candidate scores.

        Raises:
            OsaurusError: the request is invalid.
        """
        encoded = self._encoder.encode_continuations(frame.request)
        return self._build(frame.id, encoded, lambda logprobs: CandidateScores(logprobs=logprobs))

    def build_ranking(self, frame: messages.Rerank) -> EngineRequest:
        """Build the request that ranks documents.

        Raises:
            OsaurusError: the request is invalid; the location is one of a `RerankRequest`.
        """
        try:
            encoded = self._encoder.encode_continuations(reranking.scoring_request(frame.request, self._tokenizer))
        except OsaurusError as error:
            location = error.location or ()
            renamed = ("documents", *location[1:]) if location[:1] == ("continuations",) else ("query",)
            raise type(error)(error.message, location=renamed) from error
        return self._build(frame.id, encoded, lambda logprobs: reranking.relevance(logprobs, encoded.truncated))

    def _build(self, id_: int, encoded: EncodedContinuations, render: Render) -> EngineRequest:
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
            scored=lambda logprobs: render(_combine(trees, logprobs)),
        )


def _combine(trees: Sequence[CandidateTree], logprobs: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the log-probabilities of the candidates, given those of the tokens of all branches."""
    remaining = iter(logprobs)
    return [tree.combine(list(islice(remaining, tree.size))) for tree in trees]
