"""Events become chat completions, whole and streamed, that OpenAI's own types accept."""

import json

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from osaurusd.inference.events import Progress, Started, ToolCallDelta
from osaurusd.protocols.openai import rendering
from osaurusd.protocols.openai.common import ResponseHead
from tests.osaurusd.inference.builders import COMPLETED, delta, finished, stream, token

HEAD = ResponseHead(id="response-1", created=1738193123, model='m "x"')
COMMON = {"id": "response-1", "created": 1738193123, "model": 'm "x"'}
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 15,
    "total_tokens": 35,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 4,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
ROLE = {"role": "assistant", "content": "", "refusal": None}
TOOL_CALLS = (
    delta(tool_calls=[ToolCallDelta(index=0, id="call_1", name="f")]),
    delta(tool_calls=[ToolCallDelta(index=0, arguments='{"a"')]),
    delta(
        tool_calls=[ToolCallDelta(index=0, arguments=":1}"), ToolCallDelta(index=1, id="c", name="g", arguments="{}")]
    ),
    finished("tool_calls"),
    COMPLETED,
)


async def completion(*events):
    raw = msgspec.json.encode(await rendering.collect_chat(HEAD, stream(Started(prompt_tokens=20), *events)))
    ChatCompletion.model_validate_json(raw, strict=True)
    return json.loads(raw)


async def only_choice(*events):
    (choice,) = (await completion(*events))["choices"]
    return choice


def message(content, **fields):
    return {"role": "assistant", "content": content, "refusal": None, "annotations": [], **fields}


async def chunks(*events, **options):
    events = stream(Started(prompt_tokens=20), *events)
    rendered = [chunk async for chunk in rendering.stream_chat(HEAD, events, **options)]
    for raw in rendered:
        ChatCompletionChunk.model_validate_json(raw, strict=True)
        assert b"\n" not in raw
    return [json.loads(raw) for raw in rendered]


def chunk(delta, finish_reason=None, index=0, logprobs=None, **fields):
    return {
        **COMMON,
        "object": "chat.completion.chunk",
        "service_tier": None,
        "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
        **fields,
    }


# Whole


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_completion_has_the_whole_text(reason):
    assert await completion(delta(), delta("Once"), delta(" upon 🦕"), finished(reason), COMPLETED) == {
        **COMMON,
        "object": "chat.completion",
        "service_tier": None,
        "choices": [{"index": 0, "message": message("Once upon 🦕"), "logprobs": None, "finish_reason": reason}],
        "usage": USAGE,
    }


async def test_choices_are_ordered_by_index():
    events = delta("b", 1), delta("a", 0), finished("length", 1), delta("A", 0), finished("stop", 0), COMPLETED
    choices = [
        (choice["index"], choice["message"]["content"], choice["finish_reason"])
        for choice in (await completion(*events))["choices"]
    ]
    assert choices == [(0, "aA", "stop"), (1, "b", "length")]


async def test_completion_without_text_has_empty_content():
    assert (await only_choice(finished(), COMPLETED))["message"] == message("")


async def test_reasoning_is_not_content():
    events = delta(reasoning="Hm."), delta(reasoning=" So"), delta("Yes"), finished(), COMPLETED
    assert (await only_choice(*events))["message"] == message("Yes", reasoning_content="Hm. So")
    unfinished = await only_choice(delta(reasoning="Hm."), finished("length"), COMPLETED)
    assert unfinished["message"] == message("", reasoning_content="Hm.")


async def test_tool_calls_are_assembled_and_content_is_null():
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    choice = await only_choice(*TOOL_CALLS)
    assert (choice["message"], choice["finish_reason"]) == (message(None, tool_calls=calls), "tool_calls")
    with_text = await only_choice(delta("So:"), *TOOL_CALLS)
    assert with_text["message"] == message("So:", tool_calls=calls)


async def test_completion_has_the_logprobs_of_all_tokens():
    choice = await only_choice(
        delta("a", logprobs=[token("a", -0.5, ("b", -1.0))]),
        delta("é", logprobs=[token("é", -0.25)]),
        finished(),
        COMPLETED,
    )
    top = {"token": "b", "logprob": -1.0, "bytes": [98]}
    assert choice["logprobs"] == {
        "content": [
            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [top]},
            {"token": "é", "logprob": -0.25, "bytes": [195, 169], "top_logprobs": []},
        ],
        "refusal": None,
    }


# Streamed


async def test_stream_is_role_text_and_finish_reason():
    assert await chunks(delta(), delta("Once"), delta(" upon"), finished(), COMPLETED) == [
        chunk(ROLE),
        chunk({"content": "Once"}),
        chunk({"content": " upon"}),
        chunk({}, "stop"),
    ]


async def test_usage_is_in_the_last_chunk_and_null_before():
    assert await chunks(delta("Once"), finished("length"), COMPLETED, include_usage=True) == [
        chunk(ROLE, usage=None),
        chunk({"content": "Once"}, usage=None),
        chunk({}, "length", usage=None),
        {**chunk({}), "choices": [], "usage": USAGE},
    ]


async def test_each_choice_has_its_own_role_and_finish_reason():
    events = delta("a", 1), delta("b", 0), finished("stop", 1), delta("c", 0), finished("length", 0), COMPLETED
    assert await chunks(*events) == [
        chunk(ROLE, index=1),
        chunk({"content": "a"}, index=1),
        chunk(ROLE, index=0),
        chunk({"content": "b"}, index=0),
        chunk({}, "stop", index=1),
        chunk({"content": "c"}, index=0),
        chunk({}, "length", index=0),
    ]


async def test_reasoning_is_streamed_in_its_own_field():
    events = delta(reasoning="Hm."), delta("Yes", reasoning=" So"), finished(), COMPLETED
    assert await chunks(*events) == [
        chunk(ROLE),
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Yes", "reasoning_content": " So"}),
        chunk({}, "stop"),
    ]


async def test_first_piece_of_a_tool_call_names_the_function():
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "c", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    assert await chunks(*TOOL_CALLS) == [
        chunk(ROLE),
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}, second]}),
        chunk({}, "tool_calls"),
    ]


async def test_logprobs_are_streamed_with_their_text():
    rendered = await chunks(delta("a", logprobs=[token("a", -0.5, ("a", -0.5), ("b", -1.0))]), finished(), COMPLETED)
    top = {"token": "a", "logprob": -0.5, "bytes": [97]}
    expected = {**top, "top_logprobs": [top, {"token": "b", "logprob": -1.0, "bytes": [98]}]}
    assert rendered[1] == chunk({"content": "a"}, logprobs={"content": [expected], "refusal": None})


async def test_token_without_text_is_streamed_for_its_logprob():
    rendered = await chunks(delta(logprobs=[token("a")]), finished(), COMPLETED)
    assert [each["choices"][0]["delta"] for each in rendered[1:]] == [{}, {}]
    assert rendered[1]["choices"][0]["logprobs"]["content"][0]["token"] == "a"


async def test_choice_without_text_has_a_role_and_a_finish_reason():
    assert await chunks(finished("length"), COMPLETED) == [chunk(ROLE), chunk({}, "length")]
    assert await chunks(delta(), finished(), COMPLETED) == [chunk(ROLE), chunk({}, "stop")]


async def test_empty_delta_is_not_sent():
    rendered = await chunks(delta("a"), delta(), delta("b"), finished(), COMPLETED)
    assert [each["choices"][0]["delta"].get("content") for each in rendered] == ["", "a", "b", None]


async def test_progress_is_streamed_before_the_role():
    progress = Progress(prompt_tokens=20, prefilled=12, cached_tokens=8)
    first, second, *_ = await chunks(progress, delta("a"), finished(), COMPLETED)
    assert (first["choices"], first["prompt_progress"]) == ([], {"total": 20, "cache": 8, "processed": 12})
    assert second == chunk(ROLE)
    assert "prompt_progress" not in second


async def test_first_chunk_waits_for_the_first_delta():
    consumed = []

    async def events():
        for event in (Started(prompt_tokens=1), delta(), finished()):
            consumed.append(event)
            yield event

    rendered = rendering.stream_chat(HEAD, events())
    assert json.loads(await anext(rendered)) == chunk(ROLE)
    assert consumed == [Started(prompt_tokens=1), delta()]
    await rendered.aclose()


async def test_error_before_the_first_delta_precedes_every_chunk():
    async def events():
        yield Started(prompt_tokens=1)
        raise RuntimeError("early")

    with pytest.raises(RuntimeError, match="early"):
        await anext(rendering.stream_chat(HEAD, events()))


async def test_any_text_is_one_line_of_json():
    text = 'Grüße, "世界" 🦕\n\t\\ \x00 \u2028 data: [DONE]\n\n'
    rendered = await chunks(delta(text), finished(), COMPLETED)
    assert rendered[1]["choices"][0]["delta"] == {"content": text}
