"""Conversion of models, workers and requests to the types of the page."""

import time
from collections.abc import Mapping

from osaurusd.activity import ActiveRequest, RequestState
from osaurusd.models.record import ModelRecord
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.ui.types import ModelEntry, RequestEntry, WorkerEntry
from osaurusd.wire.admin import Availability


def model_entry(record: ModelRecord, needs_bytes: int, budget_bytes: int) -> ModelEntry:
    """Describe a model. The reason why it is not available is left out: it may contain paths."""
    available = record.state is Availability.AVAILABLE
    return ModelEntry(
        name=record.name,
        aliases=list(record.aliases),
        task=record.task,
        state=record.state,
        bytes=record.size_bytes,
        parameters=record.parameters,
        quantization=record.quantization,
        context_length=record.context_length,
        needs_bytes=needs_bytes,
        fits=needs_bytes <= budget_bytes if available else None,
        chat=record.capabilities.chat,
        tools=record.capabilities.tools,
        reasoning=record.capabilities.reasoning,
        vision=record.capabilities.vision,
    )


def worker_entry(worker: WorkerSnapshot, prompt_tokens: Mapping[str, tuple[int, int]]) -> WorkerEntry:
    """Describe a worker.

    Args:
        worker: its state.
        prompt_tokens: by model, the tokens of its prompts, and those of them that came from the prefix cache.
    """
    tokens, cached = prompt_tokens.get(worker.name, (0, 0))
    left = worker.idle_left_seconds
    return WorkerEntry(
        model=worker.name,
        state=worker.state,
        device=worker.device,
        memory_bytes=worker.held_bytes,
        needs_bytes=worker.needs_bytes,
        limit_bytes=worker.limit_bytes,
        reserved_bytes=worker.reserved_bytes,
        in_flight=worker.in_flight,
        waiting=worker.waiting,
        tokens_per_second=round(worker.tokens_per_second, 1),
        pinned=worker.pinned,
        unloads_at=None if left is None else round(time.time() + left),
        prompt_tokens=tokens,
        cached_tokens=cached,
    )


def request_entry(request: ActiveRequest, now: float) -> RequestEntry:
    """Describe a request; `now` is on the clock of the activity."""
    ended = request.ended_at or now
    first = request.first_token_at
    running = request.state is RequestState.RUNNING
    return RequestEntry(
        id=request.id,
        time=request.time,
        protocol=request.origin.protocol,
        endpoint=request.origin.endpoint,
        model=request.model,
        state=request.state,
        status=None if running else request.status,
        code=request.code,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
        output_tokens=request.output_tokens,
        first_token_seconds=None if first is None else round(first - request.started_at, 4),
        seconds=round(ended - request.started_at, 4),
        tokens_per_second=_tokens_per_second(request, now),
    )


def _tokens_per_second(request: ActiveRequest, now: float) -> float | None:
    """Return the speed of the output: of the model once it is known, before that as tokens arrive."""
    seconds = request.decode_seconds
    if not request.exact and request.first_token_at is not None:
        seconds = (request.ended_at or now) - request.first_token_at
    return round(request.output_tokens / seconds, 1) if seconds > 0 and request.output_tokens else None
