"""Serve requests, independent of the protocol: find the model, lease its worker, return its results."""

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence, Sized

import msgspec

from osaurusd.activity import ActiveRequest, Activity
from osaurusd.buffered_bytes import BufferedBytes
from osaurusd.config import Config
from osaurusd.errors import ImageInputUnsupported, InvalidRequest, ModelNotFound, OsaurusError
from osaurusd.inference import decisions, limits
from osaurusd.inference.decisions import Question
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.events import Completed, Delta, Event, Started
from osaurusd.inference.images import IMAGES, Download, ImageCollector, ImageLoader, LoadedImages
from osaurusd.inference.prompt_batch import generate_all
from osaurusd.inference.request import GenerationRequest, Location, Message, TextPrompt
from osaurusd.inference.retrieval import EmbedRequest, RerankRequest, Scores, Vectors
from osaurusd.log import get_logger
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord, Task
from osaurusd.pool.lease import Lease
from osaurusd.pool.pool import Pool
from osaurusd.wire.admin import WorkerState

log = get_logger(__name__)


_USES: Mapping[Task, str] = {
    "generate": "generates text; use it with `/v1/chat/completions`",
    "embed": "computes embeddings; use it with `/v1/embeddings`",
    "rerank": "ranks documents; use it with `/v1/rerank`",
}
"""What models are for, by their task."""


class Service:
    """Serves requests.

    Args:
        catalog: finds models.
        pool: loads models and leases their workers.
        config: returns the configuration in force.
        download: downloads images.
        buffered: counts the bytes of images.
        activity: records the use of models by requests.
    """

    def __init__(
        self,
        catalog: Catalog,
        pool: Pool,
        config: Callable[[], Config],
        download: Download,
        buffered: BufferedBytes,
        activity: Activity | None = None,
    ) -> None:
        self._catalog = catalog
        self._pool = pool
        self._config = config
        self._images = ImageLoader(config, download, buffered)
        self._activity = activity or Activity()

    async def find(self, model: str | None, task: Task | None = "generate") -> ModelRecord:
        """Find the model that a request names.

        A request that names none gets the default model; without one for this task, the only model that there is for
        it, or the only one in memory.

        Args:
            model: the name in the request.
            task: what the request needs a model for; None if that does not matter.

        Raises:
            InvalidRequest: the request names no model and the choice is ambiguous, the name is too long, or the model
                is for another task.
            ModelNotFound: the model does not exist, or cannot be served.
        """
        config = self._config()
        if not model:
            return await self._find_default(task) or await self._find_only(task)
        limits.check_value(limits.MODEL, model, config.input)
        try:
            record = await self._catalog.find(model)
        except ModelNotFound:
            default = await self._find_default(task) if config.default_for_unknown else None
            if default is None:
                raise
            return default
        if task is not None and record.task != task and not (task == "rerank" and self._also_ranks(record)):
            raise InvalidRequest(f'the model "{record.name}" {_USES[record.task]}', location=limits.MODEL)
        return record

    def _also_ranks(self, record: ModelRecord) -> bool:
        """Whether the configuration makes a model that generates text a reranker."""
        names = {name.lower() for name in self._config().models.rerankers}
        return record.task == "generate" and not names.isdisjoint(name.lower() for name in (*record.names, record.repo))

    async def _find_default(self, task: Task | None) -> ModelRecord | None:
        """Return the configured default model if it is for this task."""
        name = self._config().default_model
        record = None if name is None else await self._catalog.find(name)
        return record if record is None or task in (None, record.task) else None

    async def _find_only(self, task: Task | None) -> ModelRecord:
        available = [record for record in await self._catalog.available() if task in (None, record.task)]
        loaded = {worker.name for worker in self._pool.snapshot() if worker.state is WorkerState.READY}
        for candidates in (available, [record for record in available if record.name in loaded]):
            if len(candidates) == 1:
                return candidates[0]
        kind = "" if task is None else f" that {_USES[task].partition(';')[0]}"
        reason = f"{len(available)} models{kind} are available" if available else f"no model{kind} is available"
        raise InvalidRequest(
            f"the model is required, because {reason}; name one, or set `default_model` in the configuration",
            location=limits.MODEL,
        )

    def defaults(self, record: ModelRecord) -> RequestDefaults:
        """Return the defaults for requests to a model."""
        return RequestDefaults.from_config(record.generation, self._config())

    def check_lengths(self, parts: Mapping[Location, Sized | None]) -> None:
        """Check the lengths of lists and objects by their location, before a request is built from them.

        Raises:
            InvalidRequest: one is too long.
        """
        limits.check_lengths(parts, self._config().input)

    async def count_prompt_tokens(
        self, record: ModelRecord, request: GenerationRequest, images: ImageCollector | None = None
    ) -> int:
        """Return the number of tokens of a request's prompt, without generating; raises what `generate` raises."""
        counting = msgspec.structs.replace(request, count_only=True)
        tokens = 0
        async with contextlib.aclosing(self.generate(record, [counting], images)) as events:
            async for event in events:
                if isinstance(event, Started):
                    tokens = event.prompt_tokens
        return tokens

    async def embed(self, record: ModelRecord, request: EmbedRequest) -> tuple[Vectors, Completed]:
        """Embed texts.

        Raises:
            OsaurusError: the request is invalid or failed.
        """
        limits.check_value(limits.INPUTS, request.inputs, self._config().input)
        for number, text in enumerate(request.inputs):
            if not (text.text if isinstance(text, TextPrompt) else text.tokens):
                raise InvalidRequest("must not be empty; leave it out", location=("inputs", number))
        async with self._lease(record) as (lease, active):
            vectors, completed = await lease.client.embed(request)
            _record_completed(active, completed)
            return vectors, _with_wait_times(completed, lease)

    async def rerank(self, record: ModelRecord, request: RerankRequest) -> tuple[Scores, Completed]:
        """Score documents by their relevance to a query; raises what `embed` raises."""
        limits.check_value(limits.DOCUMENTS, request.documents, self._config().input)
        if not request.query:
            raise InvalidRequest("must not be empty", location=("query",))
        async with self._lease(record) as (lease, active):
            scores, completed = await lease.client.rerank(request)
            _record_completed(active, completed)
            return scores, _with_wait_times(completed, lease)

    async def decide(
        self, record: ModelRecord, messages: Sequence[Message], questions: Sequence[Question]
    ) -> tuple[list[list[float]], Completed]:
        """Return the probabilities of the options of questions about messages, and the usage and timings.

        Raises:
            OsaurusError: a message or a question is invalid, or the request failed.
        """
        config = self._config()
        limits.check_value(limits.QUESTIONS, questions, config.input)
        request = decisions.build_request(messages, questions)
        limits.check_request(request, config.input)
        if config.log.content:
            log.info("questions", messages=msgspec.to_builtins(messages), questions=msgspec.to_builtins(questions))
        async with self._lease(record) as (lease, active):
            try:
                scored, completed = await lease.client.score(request)
            except OsaurusError as error:
                raise decisions.locate_question(error, questions) from error
            _record_completed(active, completed)
            return decisions.probabilities(questions, scored.logprobs), _with_wait_times(completed, lease)

    async def generate(
        self, record: ModelRecord, requests: Sequence[GenerationRequest], images: ImageCollector | None = None
    ) -> AsyncGenerator[Event]:
        """Yield the events of one client request, and end with `Completed`. Closing the iterator cancels the request.

        Args:
            record: the model, which is loaded if necessary.
            requests: one per prompt, at least one. With several, choices are numbered consecutively, and each prompt
                has its own `Started`.
            images: those that the prompt of a single request refers to.

        Raises:
            OsaurusError: a request is invalid or failed. With several requests, `prompt_index` is the number of the
                one at fault.
        """
        config = self._config()
        _check(requests, config)
        async with (
            self._load_images(record, requests, images) as loaded,
            self._lease(record) as (lease, active),
        ):
            single = len(requests) == 1
            client = lease.client
            events = client.generate(requests[0], blobs=loaded.files) if single else generate_all(client, requests)
            if config.log.content:
                events = log_content(events, requests)
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Started):
                        loaded.release()
                    self._record(active, event)
                    yield _with_wait_times(event, lease) if isinstance(event, Completed) else event

    @contextlib.asynccontextmanager
    async def _load_images(
        self, record: ModelRecord, requests: Sequence[GenerationRequest], images: ImageCollector | None
    ) -> AsyncIterator[LoadedImages]:
        """Load the images of a request before its model, which an invalid one does not need."""
        if images is None or not images.sources:
            yield LoadedImages()
            return
        with images.named():
            if not record.capabilities.vision:
                reason = record.vision_refusal or "it is a text model"
                raise ImageInputUnsupported(
                    f'model "{record.name}" does not accept images: {reason}', location=(*IMAGES, 0)
                )
            async with self._images.load(images, requests[0].prompt) as loaded:
                yield loaded

    @contextlib.asynccontextmanager
    async def _lease(self, record: ModelRecord) -> AsyncIterator[tuple[Lease, ActiveRequest]]:
        """Lease a worker, and record the use of the model."""
        with self._activity.track_model(record.name) as active:
            async with self._pool.lease(record) as lease:
                yield lease, active

    def _record(self, active: ActiveRequest, event: Event) -> None:
        match event:
            case Delta():
                active.token_generated(self._activity.clock())
            case Started():
                active.prompt_processed(event.prompt_tokens, event.cached_tokens)
            case Completed():
                _record_completed(active, event)


def _record_completed(active: ActiveRequest, completed: Completed) -> None:
    usage = completed.usage
    active.output_completed(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, completed.timings.decode)


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
