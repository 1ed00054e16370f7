"""Serving the files of distributed models to the hosts that run them, which copy what they lack."""

from collections.abc import Callable

from aiohttp import web

from osaurusd.errors import Forbidden, NotFound
from osaurusd.groups.manifest import Manifests
from osaurusd.hosts.registry import Host
from osaurusd.hosts.server import peer
from osaurusd.http.routes import Route
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.wire.errors import as_json

_CHUNK_BYTES = 1024 * 1024


class FileService:
    """The route for files. Only the control server, which knows who asks, may serve it.

    Args:
        catalog: the models on this host.
        manifests: their files; no others are served.
        includes: whether a host of this name runs a part of a model.
        peer: returns the host that sent a request.
    """

    def __init__(
        self,
        catalog: Catalog,
        manifests: Manifests,
        includes: Callable[[ModelRecord, str], bool],
        peer: Callable[[web.Request], Host] = peer,
    ) -> None:
        self._catalog = catalog
        self._manifests = manifests
        self._includes = includes
        self._peer = peer

    @property
    def routes(self) -> list[Route]:
        return [Route("GET", "/v0/models/{model}/files/{path:.+}", self.send)]

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Send a file of a model, or a range of it."""
        record = await self._catalog.find(request.match_info["model"])
        if not self._includes(record, self._peer(request).name):
            raise Forbidden(f'model "{record.name}" is not distributed to this host')
        path = request.match_info["path"]
        manifest = await self._manifests.build(record)
        if all(file.path != path for file in manifest.files):
            raise NotFound(f'model "{record.name}" has no file {as_json(path)}')
        return web.FileResponse(record.path / path, chunk_size=_CHUNK_BYTES)
