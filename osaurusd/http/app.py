"""Building the application of one listener from route groups."""

from collections.abc import Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from osaurusd.activity import Activity
from osaurusd.config import Config
from osaurusd.http.admission import Admission
from osaurusd.http.auth import require_user
from osaurusd.http.cors import reject_web_pages, require_json_body
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.middleware import RequestPipeline, admitted
from osaurusd.http.paths import HeaderResource, NormalizedPaths
from osaurusd.http.request import defer_continue
from osaurusd.http.routes import ResponseHook, RouteGroup
from osaurusd.http.trusted_hosts import trusted_socket_hosts
from osaurusd.http.websocket import enable_websockets


def create_app(
    groups: Sequence[RouteGroup],
    config: Callable[[], Config],
    *,
    admission: Admission | None = None,
    metrics: HttpMetrics | None = None,
    activity: Activity | None = None,
    middlewares: Sequence[Middleware] = (),
    response_hooks: Sequence[ResponseHook] = (),
) -> web.Application:
    """Build an application.

    Args:
        groups: the routes; the first group renders the errors of unknown paths that no group owns.
        config: returns the configuration in force.
        admission: shared by all applications of the daemon; by default the application has its own.
        metrics: counts the requests.
        activity: records the admitted requests.
        middlewares: applied outermost first, after the request has its id and before it is admitted.
        response_hooks: called before the headers of any response are sent, errors and streams included.
    """
    app = web.Application()
    activity = activity or Activity()
    owners: dict[web.AbstractResource, RouteGroup] = {}
    # The router tries resources of one path in the order of their registration.
    for group in sorted(groups, key=lambda group: group.header is None):
        for path, route in group.paths:
            resource = _add_resource(app.router, path, group)
            owners[resource] = group
            handler = admitted(route.handler, activity) if route.admitted else route.handler
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                resource.add_route(method, handler, expect_handler=defer_continue)
    app.router.register_resource(NormalizedPaths(app.router))
    pipeline = RequestPipeline(groups, owners, config, admission or Admission(config), metrics)
    app.middlewares.extend([pipeline.observe, pipeline.respond, *middlewares])
    enable_websockets(app)
    app.on_response_prepare.append(pipeline.add_request_id)
    app.on_response_prepare.extend(response_hooks)
    return app


def _add_resource(router: web.UrlDispatcher, path: str, group: RouteGroup) -> web.Resource:
    if group.header is None:
        return router.add_resource(path)
    resource = HeaderResource(path, group.header)
    router.register_resource(resource)
    return resource


def socket_middlewares(uid: int) -> list[Middleware]:
    """Build the middlewares of the Unix socket, which only this user's own programs may use."""
    return [require_user(uid), trusted_socket_hosts, reject_web_pages, require_json_body]
