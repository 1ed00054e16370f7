"""Building the application of one listener from route groups."""

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from osaurusd.config import Config
from osaurusd.http.admission import Admission
from osaurusd.http.auth import require_user
from osaurusd.http.cors import reject_web_pages, require_json_body
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.middleware import RequestPipeline, admitted
from osaurusd.http.paths import NormalizedPaths
from osaurusd.http.request import defer_continue
from osaurusd.http.routes import RouteGroup
from osaurusd.http.trusted_hosts import trusted_socket_hosts

ResponseHook = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


def create_app(
    groups: Sequence[RouteGroup],
    config: Callable[[], Config],
    *,
    admission: Admission | None = None,
    metrics: HttpMetrics | None = None,
    middlewares: Sequence[Middleware] = (),
    response_hooks: Sequence[ResponseHook] = (),
) -> web.Application:
    """Build an application.

    Args:
        groups: the routes; the first group renders the errors of unknown paths that no group owns.
        config: returns the configuration in force.
        admission: shared by all applications of the daemon; by default the application has its own.
        metrics: counts the requests.
        middlewares: applied outermost first, after the request has its id and before it is admitted.
        response_hooks: called before the headers of any response are sent, errors and streams included.
    """
    app = web.Application()
    owners: dict[web.AbstractResource, RouteGroup] = {}
    for group in groups:
        for path, route in group.paths:
            handler = admitted(route.handler) if route.admitted else route.handler
            registered = app.router.add_route(route.method, path, handler, expect_handler=defer_continue)
            assert registered.resource is not None
            owners[registered.resource] = group
            if route.method == "GET":
                app.router.add_route("HEAD", path, handler, expect_handler=defer_continue)
    app.router.register_resource(NormalizedPaths(app.router))
    pipeline = RequestPipeline(groups, owners, config, admission or Admission(config), metrics)
    app.middlewares.extend([pipeline.observe, pipeline.respond, *middlewares])
    app.on_response_prepare.append(pipeline.add_request_id)
    app.on_response_prepare.extend(response_hooks)
    return app


def socket_middlewares(uid: int) -> list[Middleware]:
    """Build the middlewares of the Unix socket, which only this user's own programs may use."""
    return [require_user(uid), trusted_socket_hosts, reject_web_pages, require_json_body]
