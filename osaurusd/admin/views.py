"""Conversion of models and workers to the types of the admin API."""

from collections.abc import Iterable

from osaurusd.models.metadata import Provenance
from osaurusd.models.record import ModelRecord
from osaurusd.platform import memory
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.wire.admin import FileInfo, ModelDetails, ModelInfo, WorkerInfo
from osaurusd.wire.placement import PlacementInfo


def worker_info(worker: WorkerSnapshot) -> WorkerInfo:
    """Describe a worker, with its current memory."""
    return WorkerInfo(
        model=worker.name,
        state=worker.state,
        pid=worker.pid,
        device=worker.device,
        memory_bytes=max(worker.mlx_bytes, memory.footprint(worker.pid) if worker.pid is not None else 0),
        needs_bytes=worker.needs_bytes,
        limit_bytes=worker.limit_bytes,
        reserved_bytes=worker.reserved_bytes,
        in_flight=worker.in_flight,
        waiting=worker.waiting,
        tokens_per_second=worker.tokens_per_second,
        pinned=worker.pinned,
        load_seconds=worker.load_seconds,
        load_phases=worker.phases,
        idle_seconds=worker.idle_seconds,
        idle_left_seconds=worker.idle_left_seconds,
        last_exit=worker.last_exit,
        ranks=list(worker.ranks),
    )


def model_info(record: ModelRecord, workers: Iterable[WorkerSnapshot] = ()) -> ModelInfo:
    """Describe a model, with its worker if it is in memory."""
    worker = next((worker for worker in workers if worker.key == record.repo and worker.in_memory), None)
    return ModelInfo(
        name=record.name,
        repo=record.repo,
        path=str(record.path),
        source=record.source,
        state=record.state,
        bytes=record.size_bytes,
        created=record.created,
        reason=record.reason,
        task=record.task,
        architecture=record.architecture,
        quantization=record.quantization,
        parameters=record.parameters,
        context_length=record.context_length,
        aliases=list(record.aliases),
        worker=worker_info(worker) if worker else None,
        vision=record.capabilities.vision,
        vision_refusal=record.vision_refusal,
    )


def model_details(
    record: ModelRecord,
    provenance: Provenance,
    workers: Iterable[WorkerSnapshot],
    needs_bytes: int,
    placement: PlacementInfo | None,
) -> ModelDetails:
    """Return the details of a model."""
    estimate = record.memory
    per_token = estimate.cache_bytes_per_token
    full = estimate.weights_bytes + per_token * record.context_length if per_token and record.context_length else None
    return ModelDetails(
        model=model_info(record, workers),
        commit=provenance.commit,
        license=provenance.license,
        tools=record.capabilities.tools,
        reasoning=record.capabilities.reasoning,
        vision=record.capabilities.vision,
        temperature=record.generation.temperature,
        top_p=record.generation.top_p,
        files=[FileInfo(name=name, bytes=size) for name, size in record.files],
        needs_bytes=needs_bytes,
        weights_bytes=estimate.weights_bytes,
        kv_bytes_per_token=per_token,
        full_context_bytes=full,
        lineage=provenance.lineage,
        imported=provenance.imported,
        placement=placement,
    )
