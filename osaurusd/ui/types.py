"""The data of the page: models, workers, requests and the last hour. Nothing here is the content of a request."""

from typing import Annotated

import msgspec

from osaurusd.activity import RequestState
from osaurusd.wire.admin import Availability, WorkerState


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory for all models, and the part that models hold."""

    budget_bytes: int
    used_bytes: int


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk.

    Attributes:
        bytes: size of its files.
        needs_bytes: minimum memory.
        fits: whether `needs_bytes` fits into the budget; null if the model is not available.
    """

    name: str
    aliases: list[str]
    task: str
    state: Availability
    bytes: int
    parameters: int | None
    quantization: str | None
    context_length: int | None
    needs_bytes: int
    fits: bool | None
    chat: bool
    tools: bool
    reasoning: bool
    vision: bool


class WorkerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory, or one that waits for memory or failed.

    Attributes:
        memory_bytes: the part of the budget that it holds; all of them together are `Memory.used_bytes`.
        needs_bytes, limit_bytes, reserved_bytes: as in the status of the admin API.
        unloads_at: when the idle model is unloaded, in Unix seconds; null if it is in use or stays loaded.
        prompt_tokens, cached_tokens: since the start of the daemon; the latter came from the prefix cache.
    """

    model: str
    state: WorkerState
    device: str | None
    memory_bytes: int
    needs_bytes: int
    limit_bytes: int
    reserved_bytes: int
    in_flight: int
    waiting: int
    tokens_per_second: float
    pinned: bool
    unloads_at: int | None
    prompt_tokens: int
    cached_tokens: int


class RequestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A request; durations are in seconds.

    Attributes:
        time: when it arrived, in Unix seconds.
        protocol: the client API, such as `openai`.
        status: HTTP status; null while it runs, and if it was not answered.
        code: the error code, if it failed.
        output_tokens: approximate while the request runs.
        seconds: duration so far.
    """

    id: str
    time: float
    protocol: str
    endpoint: str
    model: str | None
    state: RequestState
    status: int | None
    code: str | None
    prompt_tokens: int | None
    cached_tokens: int
    output_tokens: int
    first_token_seconds: float | None
    seconds: float
    tokens_per_second: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The state at one moment, summed over all models; `memory_bytes` is `Memory.used_bytes`."""

    time: int
    tokens_per_second: float
    memory_bytes: int
    in_flight: int
    waiting: int


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of the last hour as columns, oldest first."""

    interval_seconds: Annotated[float, msgspec.Meta(description="Time between samples; gaps are possible.")]
    time: list[int]
    tokens_per_second: list[float]
    memory_bytes: list[int]
    in_flight: list[int]
    waiting: list[int]


class WorkersChanged(msgspec.Struct, frozen=True, kw_only=True):
    """All workers, after a change."""

    memory: Memory
    workers: list[WorkerEntry]


class ModelsChanged(msgspec.Struct, frozen=True, kw_only=True):
    """All models, after a change."""

    models: list[ModelEntry]
    default_model: str | None


class RequestsChanged(msgspec.Struct, frozen=True, kw_only=True):
    """New and changed requests."""

    requests: list[RequestEntry]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment.

    Attributes:
        instance: random id of this run of the daemon.
        time, started_at: in Unix seconds.
        requests: the running ones and the last ones that finished, newest first.
    """

    instance: str
    version: str
    time: float
    started_at: float
    default_model: str | None
    memory: Memory
    models: list[ModelEntry]
    workers: list[WorkerEntry]
    requests: list[RequestEntry]
    history: History
