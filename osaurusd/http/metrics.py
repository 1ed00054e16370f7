"""Metrics of HTTP requests, and the rendering of all metrics in Prometheus' text format."""

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4


class HttpMetrics:
    """Counts requests.

    Args:
        registry: the daemon's metrics; `show` renders all of them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "osaurus_http_requests_total",
            "HTTP requests by endpoint and status.",
            ("endpoint", "status"),
            registry=registry,
        )

    def count(self, endpoint: str, status: int | str) -> None:
        self._requests.labels(endpoint, str(status)).inc()

    async def show(self, _: web.Request) -> web.Response:
        """Handle `GET /metrics`."""
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
