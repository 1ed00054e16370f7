"""One request on its way through the engine, and the answers it asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from osaurusd.inference.events import Completed, Delta, Event, Finished, FinishReason, Usage
from osaurusd.rpc import messages
from osaurusd.worker.engine.caches import Cache
from osaurusd.worker.engine.prefix import Match, Tokens
from osaurusd.worker.engine.sampling import SamplingState
from osaurusd.worker.frontend.logprobs import Score
from osaurusd.worker.frontend.output_parser import SequenceOutput
from osaurusd.worker.frontend.text_assembler import OutputDelta


@dataclass(eq=False)
class Choice:
    """One answer of a request.

    `said` are the tokens generated so far, an end token included; `reserved` the length that it may grow to before
    memory is asked for again.
    """

    index: int
    sampling: SamplingState
    output: SequenceOutput
    output_tokens: list[int] = field(default_factory=list)
    reserved: int = 0
    announced: bool = False


@dataclass(eq=False)
class EngineRequest:
    """A prompt and its answers.

    `max_tokens` bounds each answer; `bounded` says whether the client set it or only the context does. `boundary` is
    where the part of the prompt ends that the next one may share. `echo` gives the prompt back before any answer: with
    one score for each of its tokens but the first, if it `needs_prompt_logprobs`. `cached_tokens` of the prompt had not to be
    computed; None until that is known. A `continuation` of a client request that has begun may wait behind any number of others.
    """

    id: int
    prompt_tokens: list[int]
    choices: list[Choice]
    max_tokens: int
    bounded: bool = True
    continuation: bool = False
    shared_prefix_length: int | None = None
    echo: Callable[[list[Score]], OutputDelta] | None = None
    needs_prompt_logprobs: bool = False
    cached_tokens: int | None = None
    open: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        self.open = len(self.choices)

    def tell(self, choice: Choice, news: OutputDelta | None) -> Iterator[messages.Frame]:
        """What is new in an answer; the first of it is sent even if empty, for it says that the prompt is processed."""
        if news is None and choice.announced:
            return
        choice.announced = True
        if news is None:
            yield self._output(Delta(index=choice.index))
        else:
            yield self._output(
                Delta(
                    index=choice.index,
                    text=news.text,
                    reasoning=news.reasoning,
                    tool_calls=news.tool_calls,
                    logprobs=news.logprobs,
                )
            )

    def end(self, choice: Choice, reason: FinishReason, tokens: int) -> Iterator[messages.Frame]:
        """One answer of `tokens` tokens is complete, and with the last one the request."""
        yield self._output(Finished(index=choice.index, reason=reason))
        self.open -= 1
        self.completion_tokens += tokens
        self.reasoning_tokens += choice.output.reasoning_tokens
        if not self.open:
            usage = Usage(
                prompt_tokens=len(self.prompt_tokens),
                completion_tokens=self.completion_tokens,
                cached_tokens=self.cached_tokens or 0,
                reasoning_tokens=self.reasoning_tokens,
            )
            yield self._output(Completed(usage=usage))

    def _output(self, event: Event) -> messages.Frame:
        return messages.Output(id=self.id, event=event)


@dataclass(eq=False)
class Run:
    """Tokens to be processed before `choices` of a request can be decoded: its prompt, and what they said already.

    `prefilled` of them are in `cache`. `stops` are positions to keep states at, in falling order. `scores` collects
    those of an echoed prompt. `match` is what it takes over, until it has. One that is `by_itself` shares no pass with
    others; one that has `waited` did so for another that processes what both begin with.
    """

    request: EngineRequest
    choices: list[Choice]
    tokens: Tokens
    cache: Cache = field(default_factory=list)
    started: bool = False
    prefilled: int = 0
    stops: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    match: Match | None = None
    by_itself: bool = False
    waited: bool = False
    passed_over: int = 0
    _commons: dict["Run", int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, request: EngineRequest, choices: list[Choice], said: list[int]) -> "Run":
        """The run that leads up to `choices`, all of which have said `said`."""
        return cls(request, choices, np.array([*request.prompt_tokens, *said], np.int32))

    @property
    def left(self) -> int:
        return len(self.tokens) - self.prefilled

    @property
    def scoring(self) -> bool:
        """Whether every token's logits are wanted, so that nothing can be taken over from earlier sequences."""
        return self.request.needs_prompt_logprobs and not self.choices[0].output_tokens

    def common(self, other: "Run") -> int:
        """How many tokens both begin with alike."""
        if other not in self._commons:
            length = min(len(self.tokens), len(other.tokens))
            different = np.flatnonzero(self.tokens[:length] != other.tokens[:length])
            self._commons[other] = int(different[0]) if len(different) else length
        return self._commons[other]
