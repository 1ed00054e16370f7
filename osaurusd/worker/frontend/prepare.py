"""From an order to a request that the engine can take: everything that needs the tokenizer and no array."""

import secrets
from functools import partial

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import ChatPrompt, GenerationRequest, SamplingParams, TextPrompt
from osaurusd.rpc import messages
from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.request import Choice, EngineRequest
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend import prompts
from osaurusd.worker.frontend.answer import OutputDelta, Speech
from osaurusd.worker.frontend.constraint import Constraint, Grammars
from osaurusd.worker.frontend.likelihood import Score
from osaurusd.worker.frontend.prompts import Prompt
from osaurusd.worker.runners.text import Model

# Answers of a model that says nothing about its context length end here.
UNKNOWN_CONTEXT_LENGTH = 32768

_RANDOM_BITS = 64


class Preparer:
    """Makes requests, on any thread.

    Args:
        model: what is loaded.
        layout: of its caches.
        vocabulary: the width of its logits.
    """

    def __init__(self, model: Model, layout: CacheLayout, vocabulary: int) -> None:
        self._tokenizer = model.tokenizer
        self._context_length = model.context_length
        self._vocabulary = vocabulary
        self._find_boundary = layout.has_states
        self._speech = Speech(model.tokenizer)
        self._grammars = Grammars(model.tokenizer, vocabulary, model.end_tokens)

    def prepare(self, frame: messages.Generate) -> EngineRequest:
        """The request for an order.

        Raises:
            OsaurusError: what is wrong with it.
        """
        order = frame.request
        _check_bias(order.sampling, self._vocabulary)
        prompt = prompts.encode(self._tokenizer, order.prompt, self._context_length, find_boundary=self._find_boundary)
        constraint = self._constraint(order, prompt)
        room = max((self._context_length or UNKNOWN_CONTEXT_LENGTH) - len(prompt.tokens), 1)
        return EngineRequest(
            id=frame.id,
            prompt_tokens=prompt.tokens,
            choices=[self._choice(order, prompt, constraint, index) for index in range(order.n)],
            max_tokens=room if order.max_tokens is None else min(order.max_tokens, room),
            bounded=order.max_tokens is not None,
            continuation=frame.continuation,
            shared_prefix_length=prompt.boundary,
            echo=partial(self._echo, order, prompt) if order.echo else None,
            needs_prompt_logprobs=order.echo and order.logprobs is not None,
        )

    def _constraint(self, order: GenerationRequest, prompt: Prompt) -> Constraint | None:
        if order.constraint is None:
            return None
        tools = order.prompt.tools if isinstance(order.prompt, ChatPrompt) else []
        return self._grammars.compile(order.constraint, tools, thinking=prompt.thinking)

    def _choice(self, order: GenerationRequest, prompt: Prompt, constraint: Constraint | None, index: int) -> Choice:
        row = SamplingState(
            order.sampling,
            prompt_tokens=prompt.tokens,
            constraint=constraint.fork() if constraint and index else constraint,
            logprobs=order.logprobs,
            entropy=secrets.randbits(_RANDOM_BITS),
            index=index,
        )
        return Choice(index, row, self._speech.answer(order, prompt))

    def _echo(self, order: GenerationRequest, prompt: Prompt, scores: list[Score]) -> OutputDelta:
        """The prompt as the beginning of an answer."""
        text = order.prompt.text if isinstance(order.prompt, TextPrompt) else self._tokenizer.decode(prompt.tokens)
        tokens = self._speech.scored(prompt.tokens, [None, *scores]) if order.logprobs is not None else []
        return OutputDelta(text=text, tokens=tokens)


def _check_bias(sampling: SamplingParams, vocabulary: int) -> None:
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"{token} is not a token id of this model; they range from 0 to {vocabulary - 1}",
                location=("sampling", "logit_bias"),
            )
