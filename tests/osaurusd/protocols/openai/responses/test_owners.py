"""Responses and conversations of one API key cannot be used with another one."""

import json

import aiohttp
import pytest

from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.auth import require_api_key

from ...helpers import MODEL
from .conftest import serving_responses


class Client:
    """A client with an API key."""

    def __init__(self, served, key):
        self.headers = {"Authorization": f"Bearer {key}"}
        self.served = served

    async def send(self, method, path, **body):
        """Send a request, and return its status and its body."""
        headers = ["Content-Type: application/json", f"Authorization: {self.headers['Authorization']}"]
        data = None if method == "GET" else json.dumps(body).encode()
        response = await self.served.server.request(method, path, *headers, body=data)
        return response.status, response.json

    async def create(self, path, **body):
        status, created = await self.send("POST", path, **body)
        assert 200 == status, created
        return created["id"]


@pytest.fixture
def keys(tmp_path):
    return ApiKeys(tmp_path / "keys.json")


@pytest.fixture
async def clients(tmp_path, keys):
    async with serving_responses(tmp_path, middlewares=[require_api_key(keys, lambda _: True)]) as served:
        yield [Client(served, keys.create().key) for _ in range(2)]


async def test_response_belongs_to_a_key(clients):
    owner, other = clients
    id_ = await owner.create("/responses", model=MODEL, input="to be")
    background = await owner.create("/responses", model=MODEL, input="stall", background=True)

    for path in (f"/responses/{id_}", f"/responses/{id_}/input_items", f"/responses/{background}"):
        assert [404, 200] == [(await client.send("GET", path))[0] for client in (other, owner)]
    for path in (f"/responses/{id_}/cancel", f"/responses/{background}/cancel"):
        assert 404 == (await other.send("POST", path))[0]
    status, body = await other.send("POST", "/responses", model=MODEL, input="x", previous_response_id=id_)
    assert (400, "previous_response_not_found") == (status, body["error"]["code"])
    assert [404, 200] == [(await client.send("DELETE", f"/responses/{id_}"))[0] for client in (other, owner)]
    assert "cancelled" == (await owner.send("POST", f"/responses/{background}/cancel"))[1]["status"]


async def test_conversation_belongs_to_a_key(clients):
    owner, other = clients
    items = [{"role": "user", "content": "to be", "id": "msg_1"}]
    id_ = await owner.create("/conversations", items=items)

    for path in (f"/conversations/{id_}", f"/conversations/{id_}/items", f"/conversations/{id_}/items/msg_1"):
        assert [404, 200] == [(await client.send("GET", path))[0] for client in (other, owner)]
    body = {"model": MODEL, "input": "x", "conversation": id_}
    assert [404, 200] == [(await client.send("POST", "/responses", **body))[0] for client in (other, owner)]
    assert 404 == (await other.send("POST", f"/conversations/{id_}", metadata={}))[0]
    assert [404, 200] == [(await client.send("DELETE", f"/conversations/{id_}"))[0] for client in (other, owner)]


async def test_websocket_uses_the_key_of_its_request(clients, keys):
    owner, other = clients
    id_ = await owner.create("/responses", model=MODEL, input="to be")
    for client, expected in ((other, "previous_response_not_found"), (owner, None)):
        async with client.served.connect(headers=client.headers) as socket:
            events = await socket.events(input="x", previous_response_id=id_)
        assert expected == events[-1].get("error", {}).get("code")
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with owner.served.connect():
            pass
    assert 401 == caught.value.status


async def test_revoked_key_ends_the_responses_of_a_websocket(clients, keys):
    owner, _ = clients
    async with owner.served.connect(headers=owner.headers) as socket:
        assert "completed" == (await socket.respond(input="to be"))["status"]
        for info in keys.infos():
            keys.revoke(info.id)
        assert "invalid_api_key" == (await socket.error(input="x"))["code"]
