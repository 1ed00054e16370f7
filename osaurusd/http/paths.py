"""Request paths: double and trailing slashes, and hints for paths that do not exist."""

import re
from collections.abc import Container, Iterator
from typing import Any

from aiohttp import web
from aiohttp.web_urldispatcher import AbstractResource, AbstractRoute
from yarl import URL

from osaurusd.http.errors import excerpt

_SLASHES = re.compile(r"/{2,}")


def normalize_path(path: str) -> str:
    """Merge consecutive slashes, and remove trailing ones."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def describe_unknown_path(path: str, known: Container[str]) -> str:
    """Return the message for a path that does not exist.

    Clients append the endpoint to a base URL, which often contains too much. If the path ends with an endpoint, the
    message says what to remove.
    """
    normalized = normalize_path(path)
    for start in range(1, len(normalized)):
        endpoint, surplus = normalized[start:], normalized[:start]
        if endpoint in known:
            return (
                f"the path {excerpt(path)} does not exist, but {endpoint} does; remove {excerpt(surplus)} from the "
                "client's base URL"
            )
    return f"the path {excerpt(path)} does not exist"


class HeaderResource(web.DynamicResource):
    """A path of those requests that have a header. Other requests to the path belong to another resource."""

    def __init__(self, path: str, header: str) -> None:
        super().__init__(path)
        self._header = header

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        """Resolve the request."""
        return await super().resolve(request) if self._header in request.headers else (None, set())

    def raw_match(self, _: str) -> bool:
        """Return False: routes without the header are not added to this resource."""
        return False


class NormalizedPaths(AbstractResource):
    """Resolves paths with double or trailing slashes like the path without them.

    The router tries it last, for paths that nothing else matches.

    Args:
        router: resolves the path without these slashes.
    """

    def __init__(self, router: web.UrlDispatcher) -> None:
        super().__init__()
        self._router = router

    @property
    def canonical(self) -> str:
        """The prefix of the paths that it may match."""
        return "/"

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        """Resolve the request."""
        path = normalize_path(request.rel_url.raw_path)
        if path == request.rel_url.raw_path:
            return None, set()
        url = URL.build(path=path, query_string=request.rel_url.raw_query_string, encoded=True)
        match = await self._router.resolve(request.clone(rel_url=url))
        if isinstance(match.http_exception, web.HTTPMethodNotAllowed):
            return None, set(match.http_exception.allowed_methods)
        return (match, set()) if match.http_exception is None else (None, set())

    def raw_match(self, _: str) -> bool:
        """Return False: routes are added to the resources of normalized paths."""
        return False

    def add_prefix(self, prefix: str) -> None:
        """Do nothing: the application is not nested."""

    def get_info(self) -> Any:
        """Return what aiohttp shows about the resource."""
        return {"path": self.canonical}

    def url_for(self, **_: str) -> URL:
        """Return the URL of the canonical path."""
        return URL(self.canonical)

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[AbstractRoute]:
        return iter(())
