"""A request inside the engine: its choices, the events that report them, and the tokens that are to be prefilled."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from osaurusd.inference.events import (
    CandidateScores,
    Completed,
    Delta,
    Event,
    Finished,
    FinishReason,
    Progress,
    Started,
    Timings,
    Usage,
)
from osaurusd.inference.retrieval import Scores
from osaurusd.rpc import messages
from osaurusd.worker.engine.images import PromptImage
from osaurusd.worker.engine.prefix_cache import PrefixMatch, Tokens, common_prefix_length
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend.logprobs import Score
from osaurusd.worker.frontend.output_parser import SequenceOutput
from osaurusd.worker.frontend.text_assembler import OutputDelta

ScoringEvent = CandidateScores | Scores
"""The result of a request that scores candidates."""

Positions = np.ndarray[tuple[int, int], np.dtype[np.int64]]

SequenceId = tuple[int, int]
"""The id of a request and the index of one of its choices."""


@dataclass(eq=False)
class Choice:
    """One output sequence of a request.

    Attributes:
        prompt_suffix: the tokens between the prompt of the request and the output.
        shares_suffix: another choice has a suffix that begins like this one.
        candidates: tokens whose log-probabilities after the prompt are wanted.
        logprobs: those of the candidates, once the prompt has been processed.
        output_tokens: the tokens generated so far, including an end token.
        reserved_length: the length, prompt included, up to which memory is reserved.
        announced: whether a delta has been sent.
        finished: whether the last token has been generated.
    """

    index: int
    sampling: SamplingState
    output: SequenceOutput
    prompt_suffix: list[int] = field(default_factory=list)
    shares_suffix: bool = False
    candidates: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    reserved_length: int = 0
    announced: bool = False
    finished: bool = False


@dataclass(eq=False)
class EngineRequest:
    """A prompt and its choices.

    Attributes:
        max_tokens: limit of the output tokens per choice.
        positions: the positions [3, tokens] of the prompt, if those of images are their rows and columns.
        images: those in the prompt, in order; `prompt_tokens` has negative numbers at their positions.
        bounded: reserve memory for all `max_tokens`; otherwise they are a limit that memory may lower.
        continuation: the client request has already started, so a full queue does not reject this one.
        shared_prefix_length: where the part of the prompt ends that the next prompt probably shares.
        echo: renders the prompt as the beginning of each choice, given the scores of all its tokens but the first.
        needs_prompt_logprobs: whether `echo` needs those scores.
        report_progress: report each pass over the prompt that does not complete it.
        scored: renders the log-probabilities of the candidates of each choice; None unless these are wanted. Nothing is
            generated then, and the choices, each with a prompt of its own, need not run at the same time.
        cached_tokens: prompt tokens served from the prefix cache; None before prefill begins.
        unqueued: choices with candidates that the planner has yet to queue.
        submitted_at, prefill_started_at, decode_started_at: times on the engine's clock.
    """

    id: int
    prompt_tokens: list[int]
    choices: list[Choice]
    max_tokens: int
    images: list[PromptImage] = field(default_factory=list)
    positions: Positions | None = None
    bounded: bool = True
    continuation: bool = False
    shared_prefix_length: int | None = None
    echo: Callable[[list[Score]], OutputDelta] | None = None
    needs_prompt_logprobs: bool = False
    report_progress: bool = False
    scored: Callable[[list[list[float]]], ScoringEvent] | None = None
    cached_tokens: int | None = None
    submitted_at: float = 0.0
    prefill_started_at: float = 0.0
    decode_started_at: float | None = None
    unqueued: deque[Choice] = field(default_factory=deque)
    _unfinished: int = field(init=False)
    _completion_tokens: int = 0
    _reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        self._unfinished = len(self.choices)
        if self.scored is not None:
            self.unqueued.extend(self.choices)

    @property
    def position_delta(self) -> int:
        """The difference between the position and the number of a token after the prompt."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - len(self.prompt_tokens)

    @property
    def longest_prompt(self) -> int:
        """The length of the longest prompt of a choice."""
        return len(self.prompt_tokens) + max(len(choice.prompt_suffix) for choice in self.choices)

    def next_tasks(self, count: int) -> list["PrefillTask"]:
        """Take up to `count` choices with candidates, and return the tasks that prefill their prompts.

        Few at a time are queued, so that other requests are not behind all of them.
        """
        choices = [self.unqueued.popleft() for _ in range(min(count, len(self.unqueued)))]
        return [PrefillTask.from_request(self, [choice]) for choice in choices]

    def start(self, now: float) -> Iterator[messages.Frame]:
        """Report that prefill begins, unless the request has only one result."""
        self.prefill_started_at = now
        if self.scored is None:
            yield self._frame(Started(prompt_tokens=self._processed_tokens, cached_tokens=self.cached_tokens or 0))

    def progress(self, prefilled: int) -> messages.Frame:
        """Report that the first `prefilled` tokens of the prompt have been processed."""
        event = Progress(
            prompt_tokens=len(self.prompt_tokens), prefilled=prefilled, cached_tokens=self.cached_tokens or 0
        )
        return self._frame(event)

    def delta(self, choice: Choice, delta: OutputDelta | None) -> Iterator[messages.Frame]:
        """Report new output; the first delta of a choice is sent even if empty, as the prompt has been processed."""
        if delta is None and choice.announced:
            return
        choice.announced = True
        if delta is None:
            yield self._frame(Delta(index=choice.index))
        else:
            event = Delta(
                index=choice.index,
                text=delta.text,
                reasoning=delta.reasoning,
                tool_calls=delta.tool_calls,
                logprobs=delta.logprobs,
            )
            yield self._frame(event)

    def finish(self, choice: Choice, reason: FinishReason, tokens: int, now: float) -> Iterator[messages.Frame]:
        """Report that a choice is finished after `tokens` tokens, and after the last choice the request."""
        choice.finished = True
        if self.scored is None:
            yield self._frame(Finished(index=choice.index, reason=reason, stop=choice.output.matched_stop))
        self._unfinished -= 1
        self._completion_tokens += tokens
        self._reasoning_tokens += choice.output.reasoning_tokens
        if self._unfinished:
            return
        if self.scored is not None:
            yield self._frame(self.scored([choice.logprobs for choice in self.choices]))
        yield self._frame(Completed(usage=self._usage(), timings=self._timings(now)))

    @property
    def _processed_tokens(self) -> int:
        """The tokens of all prompts, of which the choices share the first part."""
        return len(self.prompt_tokens) + sum(len(choice.prompt_suffix) for choice in self.choices)

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._processed_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self.cached_tokens or 0,
            reasoning_tokens=self._reasoning_tokens,
        )

    def _timings(self, now: float) -> Timings:
        decode_started_at = now if self.decode_started_at is None else self.decode_started_at
        return Timings(
            queue=self.prefill_started_at - self.submitted_at,
            prefill=decode_started_at - self.prefill_started_at,
            decode=now - decode_started_at,
        )

    def _frame(self, event: Event | ScoringEvent) -> messages.Frame:
        return messages.Output(id=self.id, event=event)


@dataclass(frozen=True, eq=False)
class Sequence:
    """A choice that is being decoded."""

    request: EngineRequest
    choice: Choice

    @property
    def id(self) -> SequenceId:
        return self.request.id, self.choice.index

    @property
    def length(self) -> int:
        return self._prompt_length + len(self.choice.output_tokens)

    @property
    def max_length(self) -> int:
        return self._prompt_length + self.request.max_tokens

    @property
    def _prompt_length(self) -> int:
        return len(self.request.prompt_tokens) + len(self.choice.prompt_suffix)

    def receive(self, token: int, score: Score | None, *, is_end: bool, now: float) -> Iterator[messages.Frame]:
        """Add a token and report what it changes; `is_end` marks an end-of-sequence token, which is not output."""
        request, choice, output = self.request, self.choice, self.choice.output
        choice.output_tokens.append(token)
        count = len(choice.output_tokens)
        if is_end:
            yield from request.delta(choice, output.finish(truncated=False))
            yield from request.finish(choice, _stop_reason(output), count - 1, now)
            return
        at_limit = count >= request.max_tokens
        yield from request.delta(choice, output.add(token, score))
        if output.stopped:
            yield from request.finish(choice, _stop_reason(output), count, now)
        elif at_limit:
            yield from request.delta(choice, output.finish(truncated=True))
            yield from request.finish(choice, "length", count, now)


@dataclass(eq=False)
class PrefillTask:
    """Tokens to process before `choices` can be decoded: the prompt, and the output tokens of a preempted choice.

    Attributes:
        started: whether the prefix cache has been looked up.
        prefilled: how many tokens are in the cache, or will be restored into it from `match`.
        match: the result of the lookup.
        unencoded: the numbers of the images whose features are needed and not available yet.
        encoded_stages: how many stages of the first of these are done.
        checkpoints: positions at which to store checkpoints, in descending order.
        scores: those of an echoed prompt.
        isolated: must not share a pass, because a shared one failed.
        waited: has waited for another task to process a common prefix.
        passed_over: how often another task was chosen since this one was last.
    """

    request: EngineRequest
    choices: list[Choice]
    tokens: Tokens
    started: bool = False
    prefilled: int = 0
    match: PrefixMatch | None = None
    unencoded: deque[int] = field(default_factory=deque)
    encoded_stages: int = 0
    checkpoints: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    isolated: bool = False
    waited: bool = False
    passed_over: int = 0
    _common_prefixes: dict["PrefillTask", int] = field(default_factory=dict, repr=False)

    @classmethod
    def from_request(cls, request: EngineRequest, choices: list[Choice]) -> "PrefillTask":
        """Create the task of `choices`, which all have the same prompt and output tokens."""
        first = choices[0]
        tokens = np.array([*request.prompt_tokens, *first.prompt_suffix, *first.output_tokens], np.int32)
        return cls(request, choices, tokens)

    @property
    def id(self) -> SequenceId:
        """The id of its first sequence: no sequence belongs to two tasks."""
        return self.request.id, self.choices[0].index

    @property
    def sequences(self) -> list[Sequence]:
        return [Sequence(self.request, choice) for choice in self.choices]

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.prefilled

    @property
    def work(self) -> int:
        """The remaining tokens, and the work of the vision tower that precedes them."""
        images = [self.request.images[index] for index in self.unencoded]
        return self.remaining + sum(image.stages * image.patches for image in images)

    @property
    def next_image(self) -> bytes | None:
        """The key of the image that is to be encoded next."""
        return self.request.images[self.unencoded[0]].key if self.unencoded else None

    @property
    def needs_images(self) -> bool:
        """Whether images are among the remaining tokens, or change their positions."""
        return self.request.positions is not None or any(image.end > self.prefilled for image in self.request.images)

    def positions(self) -> Positions | None:
        """Return the positions of all tokens, if they are not their numbers."""
        given = self.request.positions
        if given is None:
            return None
        following = np.arange(given.shape[1], len(self.tokens)) + self.request.position_delta
        return np.concatenate([given, np.broadcast_to(following, (3, len(following)))], axis=1)

    @property
    def resumed(self) -> bool:
        """Whether the choices were preempted."""
        return bool(self.choices[0].output_tokens)

    @property
    def scoring(self) -> bool:
        """Whether the logits of every token are needed, so that no prefix can be restored."""
        return self.request.needs_prompt_logprobs and not self.resumed

    @property
    def recurring_length(self) -> int:
        """How many of the tokens later prompts may begin with: what precedes candidates does not recur."""
        if self.request.scored is None or self.choices[0].shares_suffix:
            return len(self.tokens)
        return len(self.request.prompt_tokens)

    @property
    def reports_progress(self) -> bool:
        """Whether to report the tokens processed so far: the request wants that, and more are left."""
        return self.request.report_progress and not self.resumed and self.remaining > 0

    def image_around(self, position: int) -> PromptImage | None:
        """Return the whole image that a border at this position would cut."""
        images = self.request.images
        return next((each for each in images if each.whole and each.start < position < each.end), None)

    def echo(self) -> Iterator[messages.Frame]:
        """Report the prompt as the beginning of each choice, if the request wants that."""
        if self.request.echo is not None and not self.resumed:
            for choice in self.choices:
                yield from self.request.delta(choice, self.request.echo(self.scores))

    def common_prefix(self, other: "PrefillTask") -> int:
        """Return the length of the common prefix with another task."""
        if other not in self._common_prefixes:
            self._common_prefixes[other] = common_prefix_length(self.tokens, other.tokens)
        return self._common_prefixes[other]


def _stop_reason(output: SequenceOutput) -> FinishReason:
    return "tool_calls" if output.has_tool_calls else "stop"
