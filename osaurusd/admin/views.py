"""Our state as the admin API shows it."""

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

from osaurusd import __version__
from osaurusd.admin.context import Daemon
from osaurusd.models.facts import Facts
from osaurusd.models.record import ModelRecord
from osaurusd.pool.report import Budget, WorkerReport
from osaurusd.wire.admin import (
    API_VERSION,
    DaemonStatus,
    FileInfo,
    ModelDetails,
    ModelInfo,
    ModelState,
    WorkerInfo,
    WorkerState,
)
from osaurusd.wire.keys import Protection


def worker(report: WorkerReport) -> WorkerInfo:
    """A worker, with the memory that its process has now."""
    return WorkerInfo(
        model=report.name,
        state=report.state,
        pid=report.pid,
        device=report.device,
        memory_bytes=max(report.mlx_bytes, _resident_bytes(report.pid)),
        estimated_bytes=report.needs_bytes,
        limit_bytes=report.limit_bytes,
        reserved_bytes=report.reserved_bytes,
        in_flight=report.in_flight,
        waiting=report.waiting,
        tokens_per_second=report.tokens_per_second,
        pinned=report.pinned,
        load_seconds=report.load_seconds,
        load_phases=report.phases,
        idle_seconds=report.idle_seconds,
        idle_left_seconds=report.idle_left_seconds,
        last_exit=report.last_exit,
    )


def model(record: ModelRecord, reports: Iterable[WorkerReport] = ()) -> ModelInfo:
    """A model, with its worker if it has one that runs."""
    report = next((report for report in reports if report.key == record.repo and report.is_there), None)
    return ModelInfo(
        name=record.name,
        repo=record.repo,
        path=str(record.path),
        source=record.source,
        state=record.state,
        bytes=record.size_bytes,
        created=record.created,
        reason=record.reason,
        architecture=record.architecture,
        quantization=record.quantization,
        parameters=record.parameters,
        context_length=record.context_length,
        aliases=list(record.aliases),
        worker=worker(report) if report else None,
    )


def details(record: ModelRecord, facts: Facts, reports: Iterable[WorkerReport]) -> ModelDetails:
    """Everything about one model."""
    memory = record.memory
    per_token = memory.cache_bytes_per_token
    full = memory.weights_bytes + per_token * record.context_length if per_token and record.context_length else None
    return ModelDetails(
        model=model(record, reports),
        commit=facts.commit,
        licence=facts.licence,
        tools=facts.tools,
        reasoning=facts.reasoning,
        vision=facts.vision,
        temperature=record.generation.temperature,
        top_p=record.generation.top_p,
        files=[FileInfo(name=name, bytes=size) for name, size in record.files],
        weights_bytes=memory.weights_bytes,
        kv_bytes_per_token=per_token,
        full_context_bytes=full,
    )


def status(
    daemon: Daemon,
    default_model: str | None,
    records: list[ModelRecord],
    reports: list[WorkerReport],
    budget: Budget,
    faults: list[str],
    *,
    serving: bool = True,
    protection: Protection | None = None,
) -> DaemonStatus:
    """The daemon as a whole."""
    return DaemonStatus(
        version=__version__,
        api_version=API_VERSION,
        pid=os.getpid(),
        instance=daemon.instance,
        uptime_seconds=time.monotonic() - daemon.started_at,
        endpoints=daemon.endpoints,
        socket=str(daemon.paths.socket),
        config_file=str(daemon.paths.config_file),
        log_file=str(daemon.paths.log_file),
        models_dir=str(daemon.paths.models_dir),
        default_model=default_model,
        models_available=sum(record.state is ModelState.AVAILABLE for record in records),
        workers=[worker(report) for report in reports],
        memory_budget_bytes=budget.total_bytes,
        memory_used_bytes=budget.used_bytes,
        faults=faults,
        serving=serving,
        protection=protection,
    )


def failures(reports: Iterable[WorkerReport]) -> list[str]:
    """The models whose workers ended by themselves, a line each."""
    failed = [report for report in reports if report.state is WorkerState.FAILED]
    return [f"{report.name} failed: {report.last_exit.splitlines()[0]}" for report in failed if report.last_exit]


def _resident_bytes(pid: int | None) -> int:
    """Resident memory of a process; 0 for one that is gone or not there yet."""
    if pid is not None:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
    return 0
