"""Serving the files of models to paired hosts, which copy what they lack."""

from aiohttp import web

from osaurusd.errors import NotFound
from osaurusd.groups.manifest import Manifests
from osaurusd.http.routes import Route
from osaurusd.models.catalog import Catalog

_CHUNK_BYTES = 1024 * 1024


class FileService:
    """The route for files. Only the control server, which knows who asks, may serve it.

    Args:
        catalog: the models on this host.
        manifests: their files; no others are served.
    """

    def __init__(self, catalog: Catalog, manifests: Manifests) -> None:
        self._catalog = catalog
        self._manifests = manifests

    @property
    def routes(self) -> list[Route]:
        return [Route("GET", "/v0/models/{model}/files/{path:.+}", self.send)]

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Send a file of a model, or a range of it."""
        record = await self._catalog.find(request.match_info["model"])
        path = request.match_info["path"]
        manifest = await self._manifests.build(record)
        if all(file.path != path for file in manifest.files):
            raise NotFound(f'model "{record.name}" has no file {path!r}')
        return web.FileResponse(record.path / path, chunk_size=_CHUNK_BYTES)
