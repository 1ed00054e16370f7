"""From a worker's events to OpenAI's objects, which OpenAI's own types can read."""

import json
from pathlib import Path

import msgspec
import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from osaurusd import ipc
from osaurusd.catalog.record import ModelRecord
from osaurusd.openai import render
from osaurusd.wire.admin import ModelState

ENVELOPE = render.Envelope(id="chatcmpl-1", created=1738193123, model="m")
USAGE = {"prompt_tokens": 20, "completion_tokens": 15, "total_tokens": 35}


def done(reason="stop"):
    return ipc.Done(id=1, finish_reason=reason, prompt_tokens=20, completion_tokens=15)


def delta(text):
    return ipc.Delta(id=1, text=text)


async def events(*frames):
    for frame in frames:
        yield frame


async def chunks(*frames, include_usage=False):
    found = [chunk async for chunk in render.chunks(ENVELOPE, events(*frames), include_usage=include_usage)]
    for chunk in found:
        ChatCompletionChunk.model_validate_json(chunk, strict=True)
    return [json.loads(chunk) for chunk in found]


def chunk(delta, finish_reason=None, **more):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1738193123,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        **more,
    }


ROLE = {"role": "assistant", "content": "", "refusal": None}


async def test_chunks_are_role_text_and_finish_reason():
    assert await chunks(delta(""), delta("Once"), delta(" upon"), done()) == [
        chunk(ROLE),
        chunk({"content": "Once"}),
        chunk({"content": " upon"}),
        chunk({}, "stop"),
    ]


async def test_usage_comes_last_and_is_null_before():
    assert await chunks(delta("Once"), done("length"), include_usage=True) == [
        chunk(ROLE, usage=None),
        chunk({"content": "Once"}, usage=None),
        chunk({}, "length", usage=None),
        {**chunk({}), "choices": [], "usage": USAGE},
    ]


@pytest.mark.parametrize("include_usage", [False, True])
async def test_usage_is_there_only_if_it_was_asked_for(include_usage):
    found = await chunks(delta("a"), done(), include_usage=include_usage)
    assert all(("usage" in chunk) == include_usage for chunk in found)


async def test_an_answer_without_text_has_a_role_and_a_finish_reason():
    assert await chunks(done("length")) == [chunk(ROLE), chunk({}, "length")]
    assert await chunks(delta(""), done()) == [chunk(ROLE), chunk({}, "stop")]


async def test_empty_text_is_no_chunk():
    found = await chunks(delta("a"), delta(""), delta("b"), done())
    assert [chunk["choices"][0]["delta"].get("content") for chunk in found] == ["", "a", "b", None]


async def test_the_role_is_sent_once_the_worker_says_something():
    begun = []

    async def worker():
        begun.append("asked")
        yield delta("")
        begun.append("asked again")
        yield done()

    stream = render.chunks(ENVELOPE, worker())
    assert begun == []
    assert json.loads(await anext(stream)) == chunk(ROLE)
    assert begun == ["asked"]
    await stream.aclose()


async def test_an_error_before_anything_else_is_no_chunk():
    async def worker():
        raise RuntimeError("early")
        yield done()

    with pytest.raises(RuntimeError, match="early"):
        await anext(render.chunks(ENVELOPE, worker()))


async def test_text_stays_as_it_is():
    text = 'Grüße, "世界" 🦕\n\t\\ \x00 \u2028 data: [DONE]\n\n'
    raw = [chunk async for chunk in render.chunks(ENVELOPE, events(delta(text), done()))]
    assert json.loads(raw[1])["choices"][0]["delta"] == {"content": text}
    assert all(b"\n" not in chunk for chunk in raw)


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_a_completion_is_all_text_at_once(reason):
    found = await render.completion(ENVELOPE, events(delta(""), delta("Once"), delta(" upon 🦕"), done(reason)))
    raw = msgspec.json.encode(found)
    ChatCompletion.model_validate_json(raw, strict=True)
    assert json.loads(raw) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1738193123,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Once upon 🦕", "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
        ],
        "usage": USAGE,
    }


async def test_a_completion_without_text_is_empty():
    found = await render.completion(ENVELOPE, events(done()))
    assert found.choices[0].message.content == ""


def test_a_model_is_listed_by_the_name_that_is_asked_for():
    record = ModelRecord(
        name="llama-3.2-3b-instruct",
        repo="mlx-community/Llama-3.2-3B-Instruct-4bit",
        path=Path("/x"),
        source="hub",
        state=ModelState.AVAILABLE,
        created=1738193123,
    )
    raw = msgspec.json.encode(render.model(record, "mine"))
    Model.model_validate_json(raw, strict=True)
    assert json.loads(raw) == {
        "id": "mine",
        "object": "model",
        "created": 1738193123,
        "owned_by": "osaurus",
    }


def test_a_list_says_that_it_is_one():
    assert json.loads(msgspec.json.encode(render.ModelList(data=[]))) == {"object": "list", "data": []}
