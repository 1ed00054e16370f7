"""Serve generation requests, independent of the protocol: find the model, lease its worker, stream its events."""

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from osaurusd.config import Config
from osaurusd.errors import InternalError, InvalidRequest, ModelNotFound, OsaurusError
from osaurusd.inference import decisions, limits
from osaurusd.inference.decisions import Question
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.events import Completed, Delta, Event, Scored, Started
from osaurusd.inference.prompt_batch import generate_all
from osaurusd.inference.request import GenerationRequest, Message, ScoringRequest
from osaurusd.log import get_logger
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pool import Lease, Pool
from osaurusd.wire.admin import WorkerState

log = get_logger(__name__)


class Service:
    """Serves generation requests.

    Args:
        catalog: finds models.
        pool: loads models and leases their workers.
        config: returns the configuration in force.
    """

    def __init__(self, catalog: Catalog, pool: Pool, config: Callable[[], Config]) -> None:
        self._catalog = catalog
        self._pool = pool
        self._config = config

    async def find(self, model: str | None) -> ModelRecord:
        """Find the model that a request names.

        A request that names none gets the default model; without one, the only model that there is, or the only one
        in memory.

        Raises:
            InvalidRequest: the request names no model and the choice is ambiguous, or the name is too long.
            ModelNotFound: the model does not exist, or cannot be served.
        """
        config = self._config()
        if not model:
            if config.default_model is not None:
                return await self._catalog.find(config.default_model)
            return await self._find_only()
        limits.check_value(limits.MODEL, model, config.input)
        try:
            return await self._catalog.find(model)
        except ModelNotFound:
            if config.default_for_unknown and config.default_model is not None:
                return await self._catalog.find(config.default_model)
            raise

    async def _find_only(self) -> ModelRecord:
        available = await self._catalog.available()
        loaded = {worker.name for worker in self._pool.snapshot() if worker.state is WorkerState.READY}
        for candidates in (available, [record for record in available if record.name in loaded]):
            if len(candidates) == 1:
                return candidates[0]
        reason = f"{len(available)} models are available" if available else "no model is available"
        raise InvalidRequest(
            f"the model is required, because {reason}; name one, or set `default_model` in the configuration",
            location=limits.MODEL,
        )

    def defaults(self, record: ModelRecord) -> RequestDefaults:
        """Return the defaults for requests to a model."""
        return RequestDefaults.from_config(record.generation, self._config())

    def check_prompt_count(self, count: int) -> None:
        """Check the number of prompts before a request is built for each of them.

        Raises:
            InvalidRequest: there are more than `input.max_prompts`.
        """
        limits.check_value(limits.PROMPTS, range(count), self._config().input)

    async def count_prompt_tokens(self, record: ModelRecord, request: GenerationRequest) -> int:
        """Return the number of tokens of a request's prompt, without generating; raises what `generate` raises."""
        counting = msgspec.structs.replace(request, count_only=True)
        tokens = 0
        async with contextlib.aclosing(self.generate(record, [counting])) as events:
            async for event in events:
                if isinstance(event, Started):
                    tokens = event.prompt_tokens
        return tokens

    async def score(self, record: ModelRecord, request: ScoringRequest) -> tuple[Scored, Completed]:
        """Return the log-probabilities of all candidates of a scoring request, and its usage and timings.

        Raises:
            OsaurusError: the request is invalid or failed.
        """
        config = self._config()
        limits.check_request(request, config.input)
        if config.log.content:
            log.info("candidates", request=msgspec.to_builtins(request))
        async with self._pool.lease(record) as lease, contextlib.aclosing(lease.score(request)) as events:
            scored = Scored(logprobs=[])
            async for event in events:
                match event:
                    case Scored():
                        scored = event
                    case Completed():
                        return scored, _with_wait_times(event, lease)
        raise InternalError("the worker ended a request without a result")

    async def decide(
        self, record: ModelRecord, messages: Sequence[Message], questions: Sequence[Question]
    ) -> tuple[list[list[float]], Completed]:
        """Return the probabilities of the options of questions about messages, and the usage and timings.

        Raises:
            OsaurusError: a message or a question is invalid, or the request failed.
        """
        limits.check_value(limits.QUESTIONS, questions, self._config().input)
        try:
            scored, completed = await self.score(record, decisions.build_request(messages, questions))
        except OsaurusError as error:
            located = decisions.locate_question(error, questions)
            if located is error:
                raise
            raise located from error
        return decisions.probabilities(questions, scored.logprobs), completed

    async def generate(self, record: ModelRecord, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Event]:
        """Yield the events of one client request, and end with `Completed`. Closing the iterator cancels the request.

        Args:
            record: the model, which is loaded if necessary.
            requests: one per prompt, at least one. With several, choices are numbered consecutively, and each prompt
                has its own `Started`.

        Raises:
            OsaurusError: a request is invalid or failed. With several requests, `prompt_index` is the number of the
                one at fault.
        """
        config = self._config()
        _check(requests, config)
        async with self._pool.lease(record) as lease:
            events = lease.generate(requests[0]) if len(requests) == 1 else generate_all(lease, requests)
            if config.log.content:
                events = log_content(events, requests)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield _with_wait_times(event, lease) if isinstance(event, Completed) else event


def _check(requests: Sequence[GenerationRequest], config: Config) -> None:
    for number, request in enumerate(requests):
        try:
            limits.check_request(request, config.input)
        except OsaurusError as error:
            error.prompt_index = number
            raise


def _with_wait_times(completed: Completed, lease: Lease) -> Completed:
    """Add the time that the request waited for its worker."""
    timings = completed.timings
    timings = msgspec.structs.replace(
        timings, load=timings.load + lease.load_seconds, queue=timings.queue + lease.queue_seconds
    )
    return msgspec.structs.replace(completed, timings=timings)


async def log_content(events: AsyncGenerator[Event], requests: Sequence[GenerationRequest]) -> AsyncGenerator[Event]:
    """Log the prompts, forward the events, and log the output, even if incomplete. Used with `log.content`."""
    log.info("prompt", prompts=[msgspec.to_builtins(request.prompt) for request in requests])
    outputs: defaultdict[int, list[str]] = defaultdict(list)
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    calls = [f"{call.name or ''}{call.arguments}" for call in event.tool_calls]
                    outputs[event.index] += [event.reasoning, event.text, *calls]
                yield event
    finally:
        log.info("output", outputs={str(index): "".join(parts) for index, parts in sorted(outputs.items())})
