"""Responses on disk."""

import pytest
from msgspec.structs import replace

from osaurusd.protocols.openai.responses.disk_store import DiskStore
from osaurusd.protocols.openai.responses.store import MemoryStore, StoredObject

FIRST = StoredObject("resp_1", b'{"id": "resp_1"}', (b"{}",), (b'{"a": 1}', b'{"b": 2}'))
SECOND = StoredObject("resp_2", b'{"id": "resp_2"}', (*FIRST.items, b'{"c": 3}'), (b'{"d": 4}',))


@pytest.fixture
async def open_store(tmp_path):
    """Open the store, as a daemon does after a restart."""
    stores = []

    async def open_store(max_bytes=10**9):
        for store in stores:
            await store.close()
        stores[:] = [DiskStore(tmp_path / "responses.db", lambda: max_bytes, MemoryStore(lambda: 10**6))]
        return stores[0]

    yield open_store
    for store in stores:
        await store.close()


async def test_responses_survive_a_restart(open_store):
    store = await open_store()
    store.put(FIRST)
    store.put(SECOND)
    store = await open_store()
    assert [FIRST, SECOND, None] == [await store.get(id_) for id_ in ("resp_1", "resp_2", "resp_3")]


async def test_replaced_object_has_its_owner_and_new_items_after_a_restart(open_store):
    conversation = StoredObject("conv_1", b"{}", (b'{"a": 1}',), owner="key")
    store = await open_store()
    store.put(conversation)
    extended = replace(conversation, input=(*conversation.input, b'{"b": 2}'))
    store.put(extended)
    store = await open_store()
    assert extended == await store.get("conv_1")


async def test_deleted_response_leaves_those_that_continue_it(open_store):
    store = await open_store()
    store.put(FIRST)
    store.put(SECOND)
    store = await open_store()
    assert await store.delete("resp_1")
    assert not await store.delete("resp_1")
    store = await open_store()
    assert [None, SECOND] == [await store.get(id_) for id_ in ("resp_1", "resp_2")]


async def test_responses_beyond_the_size_are_deleted(open_store):
    store = await open_store(max_bytes=200_000)
    responses = [StoredObject(f"resp_{index}", b"{}", (), (bytes([65 + index]) * 60_000,)) for index in range(4)]
    for response in responses:
        store.put(response)
    store = await open_store(max_bytes=200_000)
    found = [await store.get(response.id) for response in responses]
    assert (None, responses[-1]) == (found[0], found[-1])


async def test_damaged_database_is_moved_aside(open_store, tmp_path):
    (tmp_path / "responses.db").write_bytes(b"no database" * 100)
    store = await open_store()
    store.put(FIRST)
    store = await open_store()
    assert FIRST == await store.get("resp_1")
    assert (tmp_path / "responses.damaged").exists()


async def test_responses_stay_in_memory_if_they_cannot_be_written(tmp_path):
    store = DiskStore(tmp_path / "missing" / "responses.db", lambda: 10**9, MemoryStore(lambda: 10**6))
    store.put(FIRST)
    assert FIRST == await store.get("resp_1")
    assert await store.get("resp_2") is None
    await store.close()
