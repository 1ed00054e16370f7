"""From a worker's events to the chunks of a streamed chat, which OpenAI's own types can read."""

import json

import pytest
from openai.types.chat import ChatCompletionChunk

from osaurusd.inference.events import ToolCallDelta
from osaurusd.protocols.openai.render.chunks import chunks as render

from .events import COMMON, DONE, ENVELOPE, USAGE, chunks, delta, finished, scored, stream

ROLE = {"role": "assistant", "content": "", "refusal": None}


def chunk(delta, finish_reason=None, index=0, logprobs=None, **more):
    return {
        **COMMON,
        "object": "chat.completion.chunk",
        "service_tier": None,
        "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
        **more,
    }


async def rendered(*frames, **options):
    return await chunks(render, ChatCompletionChunk, *frames, **options)


async def test_chunks_are_role_text_and_finish_reason():
    assert await rendered(delta(), delta("Once"), delta(" upon"), finished(), DONE) == [
        chunk(ROLE),
        chunk({"content": "Once"}),
        chunk({"content": " upon"}),
        chunk({}, "stop"),
    ]


async def test_usage_comes_last_and_is_null_before():
    assert await rendered(delta("Once"), finished("length"), DONE, include_usage=True) == [
        chunk(ROLE, usage=None),
        chunk({"content": "Once"}, usage=None),
        chunk({}, "length", usage=None),
        {**chunk({}), "choices": [], "usage": USAGE},
    ]


async def test_each_answer_has_its_own_role_and_finish_reason():
    frames = delta("a", 1), delta("b", 0), finished("stop", 1), delta("c", 0), finished("length", 0), DONE
    assert await rendered(*frames) == [
        chunk(ROLE, index=1),
        chunk({"content": "a"}, index=1),
        chunk(ROLE, index=0),
        chunk({"content": "b"}, index=0),
        chunk({}, "stop", index=1),
        chunk({"content": "c"}, index=0),
        chunk({}, "length", index=0),
    ]


async def test_thoughts_are_not_content():
    frames = delta(reasoning="Hm."), delta("Yes", reasoning=" So"), finished(), DONE
    assert await rendered(*frames) == [
        chunk(ROLE),
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Yes", "reasoning_content": " So"}),
        chunk({}, "stop"),
    ]


async def test_calls_come_in_pieces_of_which_the_first_names_the_function():
    frames = (
        delta(calls=[ToolCallDelta(index=0, id="call_1", name="f")]),
        delta(calls=[ToolCallDelta(index=0, arguments='{"a"')]),
        delta(
            calls=[ToolCallDelta(index=0, arguments=":1}"), ToolCallDelta(index=1, id="c", name="g", arguments="{}")]
        ),
        finished("tool_calls"),
        DONE,
    )
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "c", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    assert await rendered(*frames) == [
        chunk(ROLE),
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}, second]}),
        chunk({}, "tool_calls"),
    ]


async def test_log_probabilities_come_with_their_text():
    found = await rendered(delta("a", tokens=[scored("a", -0.5, ("a", -0.5), ("b", -1.0))]), finished(), DONE)
    token = {"token": "a", "logprob": -0.5, "bytes": [97]}
    likely = {**token, "top_logprobs": [token, {"token": "b", "logprob": -1.0, "bytes": [98]}]}
    assert chunk({"content": "a"}, logprobs={"content": [likely], "refusal": None}) == found[1]


async def test_a_token_without_text_of_its_own_is_told_too():
    found = await rendered(delta(tokens=[scored("a")]), finished(), DONE)
    assert [{}, {}] == [chunk["choices"][0]["delta"] for chunk in found[1:]]
    assert "a" == found[1]["choices"][0]["logprobs"]["content"][0]["token"]


async def test_an_answer_without_text_has_a_role_and_a_finish_reason():
    assert await rendered(finished("length"), DONE) == [chunk(ROLE), chunk({}, "length")]
    assert await rendered(delta(), finished(), DONE) == [chunk(ROLE), chunk({}, "stop")]


async def test_empty_text_is_no_chunk():
    found = await rendered(delta("a"), delta(), delta("b"), finished(), DONE)
    assert ["", "a", "b", None] == [chunk["choices"][0]["delta"].get("content") for chunk in found]


async def test_the_role_is_sent_once_the_worker_says_something():
    begun = []

    async def worker():
        begun.append("asked")
        yield delta()
        begun.append("asked again")
        yield finished()

    found = render(ENVELOPE, worker())
    assert begun == []
    assert chunk(ROLE) == json.loads(await anext(found))
    assert begun == ["asked"]
    await found.aclose()


async def test_an_error_before_anything_else_is_no_chunk():
    async def worker():
        raise RuntimeError("early")
        yield DONE

    with pytest.raises(RuntimeError, match="early"):
        await anext(render(ENVELOPE, worker()))


async def test_text_stays_as_it_is():
    text = 'Grüße, "世界" 🦕\n\t\\ \x00 \u2028 data: [DONE]\n\n'
    raw = [chunk async for chunk in render(ENVELOPE, stream(delta(text), finished(), DONE))]
    assert {"content": text} == json.loads(raw[1])["choices"][0]["delta"]
    assert all(b"\n" not in chunk for chunk in raw)
