"""Paired hosts. On the Unix socket only: a client must not be able to add a host that may use this one."""

from aiohttp import web

from osaurusd.admin.routes import get, post
from osaurusd.hosts.registry import Host
from osaurusd.hosts.service import Hosts
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.wire.hosts import AddHostRequest, CheckHostsRequest, HostInfo, HostRoute, RemoveHostRequest


class HostsApi:
    """Handlers for paired hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    @property
    def routes(self) -> list[Route]:
        return [
            get(HostRoute.HOSTS, self.list_hosts),
            post(HostRoute.HOSTS, self.add),
            post(HostRoute.CODE, self.offer_code),
            post(HostRoute.CHECK, self.check),
            post(HostRoute.REMOVE, self.remove),
        ]

    async def list_hosts(self, _: web.Request) -> web.Response:
        return json_response([_info(host) for host in self._hosts.registry.all()])

    async def offer_code(self, _: web.Request) -> web.Response:
        return json_response(await self._hosts.offer_code(), status=201)

    async def add(self, request: web.Request) -> web.Response:
        body = await read_json(request, AddHostRequest)
        return json_response(_info(await self._hosts.add(body)), status=201)

    async def check(self, request: web.Request) -> web.Response:
        body = await read_json(request, CheckHostsRequest)
        return json_response(await self._hosts.check(body.name))

    async def remove(self, request: web.Request) -> web.Response:
        body = await read_json(request, RemoveHostRequest)
        return json_response(_info(await self._hosts.remove(body.name)))


def _info(host: Host) -> HostInfo:
    return HostInfo(
        name=host.name,
        url=host.url,
        fingerprint=host.fingerprint,
        link_address=host.link_address,
        added_at=host.added_at,
    )
