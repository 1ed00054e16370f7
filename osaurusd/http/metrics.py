"""`GET /metrics`: everything that is counted, in Prometheus' text format."""

from collections.abc import Iterable, Iterator

from aiohttp import web

from osaurusd import metrics
from osaurusd.http import keys
from osaurusd.metrics import Counter, Family, Gauge, Labels
from osaurusd.pool.pool import Pool
from osaurusd.pool.report import WorkerReport

REQUESTS: web.AppKey[Counter] = web.AppKey("REQUESTS", Counter)


def make_counter() -> Counter:
    """Counts the requests of one or several applications."""
    return Counter("osaurus_http_requests_total", "Requests by endpoint and status.", ("endpoint", "status"))


def add_route(app: web.Application, requests: Counter) -> None:
    """Mount `/metrics`, which tells of these requests and of the pool."""
    app[REQUESTS] = requests
    app.router.add_get("/metrics", _metrics)


def count(request: web.Request, status: int | str) -> None:
    """A request has been answered; what is not one of our endpoints is counted under one name."""
    if (counter := request.app.get(REQUESTS)) is None:
        return
    resource = request.match_info.route.resource
    endpoint = "other" if resource is None else resource.canonical.removeprefix("/v1") or "/"
    counter.add(1, endpoint, str(status))


def count_refusal(app: web.Application, status: int) -> None:
    """Something has been refused that was no request yet."""
    if (counter := app.get(REQUESTS)) is not None:
        counter.add(1, "other", str(status))


async def _metrics(request: web.Request) -> web.Response:
    pool = request.app[keys.POOL]
    families: list[Family] = [request.app[REQUESTS], *pool.meters.families(), *_gauges(pool)]
    return web.Response(body=metrics.render(families), headers={"Content-Type": metrics.CONTENT_TYPE})


def _gauges(pool: Pool) -> Iterator[Gauge]:
    reports = [report for report in pool.report() if report.is_there or report.waiting]

    def by_model(value: str) -> Iterable[tuple[Labels, float]]:
        return [((report.name,), float(getattr(report, value))) for report in reports]

    yield Gauge("osaurus_requests_in_flight", "Requests being served.", ("model",), lambda: by_model("in_flight"))
    yield Gauge("osaurus_requests_waiting", "Requests that wait for a model.", ("model",), lambda: by_model("waiting"))
    yield Gauge("osaurus_model_memory_bytes", "Memory that MLX holds.", ("model",), lambda: by_model("mlx_bytes"))
    yield Gauge("osaurus_model_limit_bytes", "Memory a model may use.", ("model",), lambda: by_model("limit_bytes"))
    yield Gauge(
        "osaurus_model_state", "1 for the state that a model is in.", ("model", "state"), lambda: _states(reports)
    )
    budget = pool.budget
    yield Gauge("osaurus_memory_budget_bytes", "Memory for models.", (), lambda: [((), budget.total_bytes)])
    yield Gauge("osaurus_memory_used_bytes", "What models hold of it.", (), lambda: [((), budget.used_bytes)])


def _states(reports: Iterable[WorkerReport]) -> list[tuple[Labels, float]]:
    return [((report.name, report.state), 1.0) for report in reports]
