"""`GET /metrics`: HTTP request counts, and all metrics of the registry in Prometheus' text format."""

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

REQUESTS: web.AppKey[Counter] = web.AppKey("REQUESTS", Counter)
REGISTRY: web.AppKey[CollectorRegistry] = web.AppKey("REGISTRY", CollectorRegistry)


def make_counter(registry: CollectorRegistry) -> Counter:
    """Create the request counter that all applications share."""
    return Counter(
        "osaurus_http_requests_total",
        "HTTP requests by endpoint and status.",
        ("endpoint", "status"),
        registry=registry,
    )


def add_route(app: web.Application, requests: Counter, registry: CollectorRegistry) -> None:
    """Add `/metrics`, and count the requests of `app`."""
    app[REQUESTS] = requests
    app[REGISTRY] = registry
    app.router.add_get("/metrics", _metrics)


def count(request: web.Request, status: int | str) -> None:
    """Count a request; unknown paths share one label."""
    if (counter := request.app.get(REQUESTS)) is None:
        return
    resource = request.match_info.route.resource
    endpoint = "other" if resource is None else resource.canonical.removeprefix("/v1") or "/"
    counter.labels(endpoint, str(status)).inc()


def count_refusal(app: web.Application, status: int) -> None:
    """Count a rejected connection or a malformed request."""
    if (counter := app.get(REQUESTS)) is not None:
        counter.labels("other", str(status)).inc()


async def _metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[REGISTRY])
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
