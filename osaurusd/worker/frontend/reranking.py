"""Ranking documents with a language model that says whether a document is relevant.

The prompt is that of Qwen3-Reranker (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B), whose score is the probability
of "yes" among "yes" and "no". A tokenizer with its special tokens gets exactly that prompt. Any other model gets the
same texts in its own chat template.
"""

import math
from collections.abc import Sequence
from typing import Any

from osaurusd.inference.request import ChatPrompt, Continuation, Message, ScoringRequest, TextPrompt
from osaurusd.inference.retrieval import RerankRequest, Scores

YES, NO = "yes", "no"

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

_SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
_START = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
_END = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def scoring_request(request: RerankRequest, tokenizer: Any) -> ScoringRequest:
    """Return what to score: the query is the prompt, and each document continues it.

    Args:
        request: the query and the documents.
        tokenizer: mlx_lm's tokenizer wrapper, which decides on the form of the prompt.
    """
    text = f"<Instruct>: {request.instruction or DEFAULT_INSTRUCTION}\n<Query>: {request.query}\n<Document>:"
    vocabulary = tokenizer.get_vocab()
    is_qwen = all(token in vocabulary for token in _SPECIAL_TOKENS)
    chat = [Message.from_text("system", SYSTEM), Message.from_text("user", text)]
    return ScoringRequest(
        prompt=TextPrompt(text=_START + text)
        if is_qwen
        else ChatPrompt(messages=chat, template_variables={"enable_thinking": False, "reasoning_effort": "none"}),
        continuations=[Continuation(text=f" {document}", candidates=[YES, NO]) for document in request.documents],
        ending=_END if is_qwen else "",
        truncate=request.truncate,
    )


def relevance(logprobs: Sequence[Sequence[float]], truncated: Sequence[int]) -> Scores:
    """Return the probability of "yes" for each document, given the log-probabilities of both candidates."""
    return Scores(values=[_sigmoid(yes - no) for yes, no in logprobs], truncated=list(truncated))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
