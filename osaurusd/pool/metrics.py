"""Prometheus metrics of models: throughput and latency measured where frames arrive, loads, and the pool's state."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from osaurusd.inference.events import Completed
from osaurusd.pool.snapshot import MemoryBudget, WorkerSnapshot

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

RATE_SECONDS = 5
"""Window of a model's current speed."""

_MODEL = ("model",)
_KV_CACHE_HELP = "Share of the memory for KV caches that running requests reserve, from 0 to 1."


class PoolMetrics:
    """Counters and histograms of all models over all of their workers.

    Args:
        registry: the registry that `/metrics` renders.
        clock: monotonic seconds.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock

        def counter(name: str, help_text: str, labels: tuple[str, ...] = _MODEL) -> Counter:
            return Counter(name, help_text, labels, registry=registry)

        self.prompt_tokens = counter("osaurus_prompt_tokens_total", "Prompt tokens.")
        self.cached_tokens = counter(
            "osaurus_cached_prompt_tokens_total", "Prompt tokens that were served from the prefix cache."
        )
        self.completion_tokens = counter("osaurus_completion_tokens_total", "Output tokens.")
        self.cache_lookups = counter(
            "osaurus_prefix_cache_requests_total", "Requests by prefix cache result.", ("model", "result")
        )
        self.first_token = Histogram(
            "osaurus_time_to_first_token_seconds",
            "Time from the request to a loaded model to its first token.",
            _MODEL,
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "osaurus_inter_token_seconds",
            "Time between consecutive output tokens.",
            _MODEL,
            buckets=INTER_TOKEN_BUCKETS,
            registry=registry,
        )
        self.loads = counter("osaurus_loads_total", "Loads by result.", ("model", "result"))
        self.unloads = counter("osaurus_unloads_total", "Stopped workers by cause.", ("model", "cause"))
        self.cache_drops = counter(
            "osaurus_cache_drops_total", "Times that a model dropped its caches because the system was short of memory."
        )
        self.crashes = counter("osaurus_crashes_total", "Workers that exited unexpectedly.")

    def for_worker(self, model: str, *, generates: bool = True) -> "WorkerMetrics":
        """Return the metrics of a new worker of this model. Only models that generate text have a prefix cache."""
        return WorkerMetrics(self, model, generates=generates)

    def cached_prompt_tokens(self) -> dict[str, tuple[int, int]]:
        """Return for each model its prompt tokens, and how many of them were served from the prefix cache."""
        cached = _by_model(self.cached_tokens)
        return {model: (count, cached.get(model, 0)) for model, count in _by_model(self.prompt_tokens).items()}


def _by_model(counter: Counter) -> dict[str, int]:
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return {sample.labels["model"]: int(sample.value) for sample in samples if sample.name.endswith("_total")}


class WorkerMetrics:
    """Metrics of one worker. Deltas count as tokens until the completed request reports exact numbers.

    Attributes:
        first_token_seconds: time to the first token of the worker's first request, once known.
    """

    def __init__(self, metrics: PoolMetrics, model: str, *, generates: bool) -> None:
        self.first_token_seconds: float | None = None
        self._generates = generates
        self._model = model
        self._metrics = metrics
        self._tokens_by_second: deque[tuple[int, int]] = deque()
        # Looking up labels takes a lock: too slow for every token.
        self._inter_token = metrics.inter_token.labels(model)

    def start_request(self) -> "RequestMetrics":
        return RequestMetrics(self, self._metrics.clock())

    def rate(self) -> float:
        """Return tokens per second over the last whole seconds."""
        now = int(self._metrics.clock())
        recent = (count for second, count in self._tokens_by_second if now - RATE_SECONDS <= second < now)
        return sum(recent) / RATE_SECONDS

    def count_token(self, now: float, since_previous: float | None) -> None:
        """Count a token of the running request."""
        if since_previous is not None:
            self._inter_token.observe(since_previous)
        second = int(now)
        if self._tokens_by_second and self._tokens_by_second[-1][0] == second:
            self._tokens_by_second[-1] = second, self._tokens_by_second[-1][1] + 1
            return
        self._tokens_by_second.append((second, 1))
        if len(self._tokens_by_second) > RATE_SECONDS + 1:
            self._tokens_by_second.popleft()

    def observe_first_token(self, seconds: float) -> None:
        """Record the time to the first token of a request."""
        self._metrics.first_token.labels(self._model).observe(seconds)
        if self.first_token_seconds is None:
            self.first_token_seconds = seconds

    def count_completed(self, completed: Completed) -> None:
        """Count a completed request with its exact numbers."""
        usage = completed.usage
        if not usage.prompt_tokens:
            return  # the prompt was only counted
        self._metrics.prompt_tokens.labels(self._model).inc(usage.prompt_tokens)
        if not self._generates:
            return
        self._metrics.cached_tokens.labels(self._model).inc(usage.cached_tokens)
        self._metrics.completion_tokens.labels(self._model).inc(usage.completion_tokens)
        self._metrics.cache_lookups.labels(self._model, "hit" if usage.cached_tokens else "miss").inc()

    def count_interrupted(self, tokens: int) -> None:
        """Count the approximate output of a request that ended early."""
        self._metrics.completion_tokens.labels(self._model).inc(tokens)


class RequestMetrics:
    """Measures one request; implements `rpc.client.RequestMonitor`."""

    def __init__(self, worker: WorkerMetrics, started_at: float) -> None:
        self._worker = worker
        self._started_at = started_at
        self._last_token_at: dict[int, float] = {}
        self._tokens = 0
        self._counted = False

    def delta_received(self, index: int, now: float) -> None:
        if not self._last_token_at:
            self._worker.observe_first_token(now - self._started_at)
        previous = self._last_token_at.get(index)
        self._last_token_at[index] = now
        self._tokens += 1
        self._worker.count_token(now, None if previous is None else now - previous)

    def completed(self, event: Completed) -> None:
        self._counted = True
        self._worker.count_completed(event)

    def closed(self) -> None:
        if not self._counted:
            self._counted = True
            self._worker.count_interrupted(self._tokens)


class PoolStatus(Protocol):
    """The part of the pool that gauges read."""

    @property
    def budget(self) -> MemoryBudget: ...

    def snapshot(self) -> list[WorkerSnapshot]: ...


class PoolCollector(Collector):
    """Gauges that are read from the pool at each scrape."""

    def __init__(self, pool: PoolStatus) -> None:
        self._pool = pool

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name the series, so that registering them does not read the pool."""
        return self._families([], MemoryBudget(0, 0))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        workers = [worker for worker in self._pool.snapshot() if worker.in_memory or worker.waiting]
        return self._families(workers, self._pool.budget)

    def _families(self, workers: list[WorkerSnapshot], budget: MemoryBudget) -> Iterator[GaugeMetricFamily]:
        def by_model(name: str, help_text: str, read: Callable[[WorkerSnapshot], float]) -> GaugeMetricFamily:
            family = GaugeMetricFamily(name, help_text, labels=_MODEL)
            for worker in workers:
                family.add_metric([worker.name], read(worker))
            return family

        yield by_model("osaurus_requests_in_flight", "Running requests.", lambda worker: worker.in_flight)
        yield by_model("osaurus_requests_waiting", "Requests waiting for a model.", lambda worker: worker.waiting)
        yield by_model("osaurus_model_memory_bytes", "Memory that MLX holds.", lambda worker: worker.mlx_bytes)
        yield by_model("osaurus_model_limit_bytes", "Memory a model may use.", lambda worker: worker.limit_bytes)
        yield by_model("osaurus_model_kv_cache_usage_ratio", _KV_CACHE_HELP, lambda worker: _kv_cache_usage([worker]))
        states = GaugeMetricFamily(
            "osaurus_model_state", "1 for the current state of a model.", labels=("model", "state")
        )
        for worker in workers:
            states.add_metric([worker.name, worker.state], 1)
        yield states
        yield from self._totals(workers)
        yield GaugeMetricFamily("osaurus_memory_budget_bytes", "Memory for all models.", budget.total_bytes)
        yield GaugeMetricFamily("osaurus_memory_used_bytes", "Memory that models hold.", budget.used_bytes)

    def _totals(self, workers: list[WorkerSnapshot]) -> Iterator[GaugeMetricFamily]:
        """Yield what routers compare hosts by: one sample each, also while no model is loaded."""
        running = sum(worker.running for worker in workers)
        queued = sum(worker.queued + worker.waiting for worker in workers)
        yield GaugeMetricFamily("osaurus_running_requests", "Requests that workers process.", running)
        yield GaugeMetricFamily("osaurus_queued_requests", "Requests waiting for a model or in its queue.", queued)
        yield GaugeMetricFamily("osaurus_kv_cache_usage_ratio", _KV_CACHE_HELP, _kv_cache_usage(workers))


def _kv_cache_usage(workers: list[WorkerSnapshot]) -> float:
    """Return the used share of the memory for KV caches; 0 if there is none."""
    caches = [worker for worker in workers if worker.kv_cache_bytes is not None]
    limit = sum(worker.kv_cache_limit_bytes for worker in caches)
    used = sum(min(worker.kv_cache_bytes or 0, worker.kv_cache_limit_bytes) for worker in caches)
    return used / limit if limit else 0.0
