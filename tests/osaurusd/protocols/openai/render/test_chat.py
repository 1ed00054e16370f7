"""From a worker's events to the whole reply to a chat, which OpenAI's own type can read."""

import json

import msgspec
import pytest
from openai.types.chat import ChatCompletion

from osaurusd.inference.events import ToolCallDelta
from osaurusd.protocols.openai.render import chat as render

from .events import COMMON, DONE, ENVELOPE, USAGE, delta, finished, scored, stream


async def completion(*frames):
    raw = msgspec.json.encode(await render.completion(ENVELOPE, stream(*frames)))
    ChatCompletion.model_validate_json(raw, strict=True)
    return json.loads(raw)


async def choice(*frames):
    (choice,) = (await completion(*frames))["choices"]
    return choice


def message(content, **more):
    return {"role": "assistant", "content": content, "refusal": None, "annotations": [], **more}


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_a_completion_is_all_text_at_once(reason):
    assert await completion(delta(), delta("Once"), delta(" upon 🦕"), finished(reason), DONE) == {
        **COMMON,
        "object": "chat.completion",
        "service_tier": None,
        "choices": [{"index": 0, "message": message("Once upon 🦕"), "logprobs": None, "finish_reason": reason}],
        "usage": USAGE,
    }


async def test_every_answer_is_a_choice_in_the_order_of_their_indexes():
    frames = delta("b", 1), delta("a", 0), finished("length", 1), delta("A", 0), finished("stop", 0), DONE
    found = [
        (choice["index"], choice["message"]["content"], choice["finish_reason"])
        for choice in (await completion(*frames))["choices"]
    ]
    assert found == [(0, "aA", "stop"), (1, "b", "length")]


async def test_a_completion_without_text_is_empty():
    assert message("") == (await choice(finished(), DONE))["message"]


async def test_thoughts_are_not_content():
    frames = delta(reasoning="Hm."), delta(reasoning=" So"), delta("Yes"), finished(), DONE
    assert message("Yes", reasoning_content="Hm. So") == (await choice(*frames))["message"]
    assert (
        message("", reasoning_content="Hm.")
        == (await choice(delta(reasoning="Hm."), finished("length"), DONE))["message"]
    )


async def test_calls_are_put_together_and_leave_no_content():
    frames = (
        delta(calls=[ToolCallDelta(index=0, id="call_1", name="f")]),
        delta(calls=[ToolCallDelta(index=0, arguments='{"a"')]),
        delta(
            calls=[ToolCallDelta(index=0, arguments=":1}"), ToolCallDelta(index=1, id="c", name="g", arguments="{}")]
        ),
        finished("tool_calls"),
        DONE,
    )
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    found = await choice(*frames)
    assert (message(None, tool_calls=calls), "tool_calls") == (found["message"], found["finish_reason"])
    assert message("So:", tool_calls=calls) == (await choice(delta("So:"), *frames))["message"]


async def test_log_probabilities_are_those_of_all_tokens():
    found = await choice(
        delta("a", tokens=[scored("a", -0.5, ("b", -1.0))]), delta("é", tokens=[scored("é", -0.25)]), finished(), DONE
    )
    likely = {"token": "b", "logprob": -1.0, "bytes": [98]}
    assert found["logprobs"] == {
        "content": [
            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [likely]},
            {"token": "é", "logprob": -0.25, "bytes": [195, 169], "top_logprobs": []},
        ],
        "refusal": None,
    }


@pytest.mark.parametrize("logprob", [float("-inf"), None, -1e9])
async def test_what_is_as_good_as_impossible_is_a_number_all_the_same(logprob):
    found = await choice(delta("a", tokens=[scored("a", -0.5, ("b", logprob))]), finished(), DONE)
    assert -9999.0 == found["logprobs"]["content"][0]["top_logprobs"][0]["logprob"]
