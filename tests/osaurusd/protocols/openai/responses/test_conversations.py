"""Conversations over HTTP, and responses that extend them."""

import pytest
from openai import ConflictError, NotFoundError

from tests.osaurusd.pool.helpers import until

from ...helpers import MODEL

USER = {"role": "user", "content": "to be"}


async def texts_of(client, conversation):
    """Return the texts of the items, oldest first."""
    items = client.conversations.items.list(conversation.id, order="asc", limit=3)
    return [item.content[0].text async for item in items]


async def test_conversation_is_created_changed_and_deleted(openai_client):
    conversations = openai_client.conversations
    created = await conversations.create(items=[USER], metadata={"a": "b"})
    updated = await conversations.update(created.id, metadata={"c": "d"})

    assert ("conversation", {"a": "b"}) == (created.object, created.metadata)
    assert (created.id, created.created_at, {"c": "d"}) == (updated.id, updated.created_at, updated.metadata)
    assert updated == await conversations.retrieve(created.id)
    assert ["to be"] == await texts_of(openai_client, created)
    assert "conversation.deleted" == (await conversations.delete(created.id)).object
    with pytest.raises(NotFoundError):
        await conversations.retrieve(created.id)


async def test_items_are_added_shown_and_deleted(openai_client):
    conversation = await openai_client.conversations.create()
    items = openai_client.conversations.items
    added = await items.create(conversation.id, items=[USER, {"role": "assistant", "content": "or not"}])

    first, second = added.data
    assert (first.id, second.id, False) == (added.first_id, added.last_id, added.has_more)
    assert second == await items.retrieve(second.id, conversation_id=conversation.id)
    assert conversation == await items.delete(first.id, conversation_id=conversation.id)
    assert ["or not"] == await texts_of(openai_client, conversation)
    with pytest.raises(NotFoundError):
        await items.retrieve(first.id, conversation_id=conversation.id)


@pytest.mark.parametrize("transport", ["json", "stream", "background", "websocket"])
async def test_response_extends_its_conversation(served, openai_client, transport):
    conversation = await openai_client.conversations.create(items=[USER])
    text, fields = "or not", {"conversation": conversation.id}
    if transport == "background":
        text = "hold"  # only a running response can be streamed
    match transport:
        case "json":
            response = await served.respond(text, **fields)
        case "stream":
            response = (await served.events(text, **fields))[-1]["response"]
        case "background":
            response = await served.respond(text, **fields, background=True)
            stream = await openai_client.responses.retrieve(response["id"], stream=True)
            served.release()
            assert "response.completed" == [event async for event in stream][-1].type
        case "websocket":
            async with served.connect() as socket:
                response = await socket.respond(input=text, **fields)

    assert {"id": conversation.id} == response["conversation"]
    assert ["to be", text, f"{text} "] == await texts_of(openai_client, conversation)
    later = await served.respond("that", conversation={"id": conversation.id}, store=False)
    assert "completed" == later["status"]
    assert ["to be", text, f"{text} ", "that", "that "] == await texts_of(openai_client, conversation)


async def test_failed_response_leaves_its_conversation(served, openai_client):
    conversation = await openai_client.conversations.create(items=[USER])
    await served.events("fail", conversation=conversation.id)
    assert ["to be"] == await texts_of(openai_client, conversation)


async def test_conversation_is_locked_while_a_response_extends_it(served, openai_client):
    conversations = openai_client.conversations
    conversation = await conversations.create(items=[USER])
    other = await conversations.create()
    response = await served.respond("stall", conversation=conversation.id, background=True)
    await until(lambda: "generate" in served.worker_frames())

    for change in (
        openai_client.responses.create(model=MODEL, input="x", conversation=conversation.id),
        conversations.update(conversation.id, metadata={}),
        conversations.items.create(conversation.id, items=[USER]),
        conversations.delete(conversation.id),
    ):
        with pytest.raises(ConflictError) as caught:
            await change
        assert "busy" == caught.value.code
    assert "completed" == (await served.respond("x", conversation=other.id))["status"]
    await openai_client.responses.cancel(response["id"])
    assert ["to be"] == await texts_of(openai_client, conversation)
    assert "completed" == (await served.respond("x", conversation=conversation.id))["status"]


async def test_tokens_of_a_conversation_are_counted(openai_client):
    conversation = await openai_client.conversations.create(items=[USER])
    counted = await openai_client.responses.input_tokens.count(model=MODEL, conversation=conversation.id)
    assert 1 == counted.input_tokens


async def test_response_is_not_a_conversation(served, openai_client):
    response = await served.respond("to be")
    conversation = await openai_client.conversations.create()

    rejected = await served.post("/responses", input="x", conversation=response["id"])
    assert (404, "conversation") == (rejected.status, rejected.error["param"])
    rejected = await served.post("/responses", input="x", previous_response_id=conversation.id)
    assert "previous_response_not_found" == rejected.error["code"]
    assert 404 == (await served.get(conversation.id)).status
    with pytest.raises(NotFoundError):
        await openai_client.responses.delete(conversation.id)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/conversations", {"items": [{"type": "x"}]}, "items[0].type"),
        (
            "/conversations",
            {"items": [{**USER, "content": [{"type": "input_image"}]}]},
            "items[0].content[0].image_url",
        ),
        ("/conversations", {"items": 1}, "items"),
        ("/conversations", {"metadata": {"a": 1}}, "metadata[...]"),
        ("/conversations/{}", {}, "metadata"),
        ("/conversations/{}/items", {}, "items"),
        ("/conversations/{}/items", {"items": [{"role": "robot", "content": "x"}]}, "items[0].role"),
    ],
)
async def test_invalid_field_is_named(served, openai_client, path, body, param):
    conversation = await openai_client.conversations.create()
    response = await served.post(path.format(conversation.id), **body)
    assert (400, param) == (response.status, response.error["param"])
