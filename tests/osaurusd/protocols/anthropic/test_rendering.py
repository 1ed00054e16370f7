"""Events of a generation become blocks of a message."""

import asyncio

import pytest

from osaurusd.inference.events import Completed, Delta, Finished, Started, ToolCallDelta, Usage
from osaurusd.protocols.anthropic.rendering import Head, collect, stream

HEAD = Head("m", 100, "shown")


async def events_of(*deltas, reason="stop", stop=None, tokens=5):
    yield Started(prompt_tokens=10, cached_tokens=4)
    for delta in deltas:
        yield delta
    yield Finished(reason=reason, stop=stop)
    yield Completed(usage=Usage(prompt_tokens=10, completion_tokens=tokens, cached_tokens=4))


def render(*deltas, head=HEAD, **end):
    return asyncio.run(collect(head, events_of(*deltas, **end)))


def call(index, call_id=None, name=None, arguments=""):
    return Delta(tool_calls=[ToolCallDelta(index=index, id=call_id, name=name, arguments=arguments)])


def test_cached_tokens_are_not_input_tokens():
    usage = render(Delta(text="x")).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (6, 4, 5)


def test_each_kind_of_output_has_a_block():
    deltas = [
        Delta(),
        Delta(reasoning="R"),
        Delta(text="a"),
        Delta(text="b"),
        call(0, "call_1", "f"),
        call(0, arguments="{}"),
        call(1, "call_2", "g"),
        call(1, arguments='{"x": [1]}'),
    ]
    blocks = render(*deltas, reason="tool_calls").content
    assert [type(block).__name__ for block in blocks] == ["ThinkingBlock", "TextBlock", "ToolUseBlock", "ToolUseBlock"]
    assert blocks[1].text == "ab"
    assert [(block.id, block.name, block.input) for block in blocks[2:]] == [
        ("toolu_1", "f", {}),
        ("toolu_2", "g", {"x": [1]}),
    ]


def test_signature_depends_on_the_thinking():
    signatures = {render(Delta(reasoning=text)).content[0].signature for text in ("a", "b", "a")}
    assert len(signatures) == 2


def test_use_that_was_cut_off_has_no_input():
    message = render(call(0, "call_1", "f", '{"x": '), reason="length", tokens=100)
    assert (message.content[0].input, message.stop_reason) == ({}, "max_tokens")


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        ({"reason": "stop"}, "end_turn", None),
        ({"reason": "stop", "stop": "END"}, "stop_sequence", "END"),
        ({"reason": "tool_calls"}, "tool_use", None),
        ({"reason": "length", "tokens": 100}, "max_tokens", None),
        ({"reason": "length", "tokens": 99}, "model_context_window_exceeded", None),
    ],
)
def test_stop_reason(end, reason, sequence):
    message = render(Delta(text="x"), **end)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


def test_blocks_of_a_stream_do_not_overlap():
    async def names():
        deltas = [Delta(reasoning="R", text="a"), call(0, "call_1", "f", "{}")]
        return [name async for name, _ in stream(HEAD, events_of(*deltas))]

    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    thinking = [*block[:2], *block[1:]]
    assert asyncio.run(names()) == ["message_start", "ping", *thinking, *block, *block, "message_delta", "message_stop"]
