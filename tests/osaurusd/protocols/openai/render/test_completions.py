"""From a worker's events to the reply to a legacy completion, which OpenAI's own type can read."""

import json

import msgspec
import pytest
from openai.types import Completion

from osaurusd.protocols.openai.render import completions as render

from .events import COMMON, DONE, ENVELOPE, USAGE, delta, finished, scored, stream


async def completion(*frames):
    raw = msgspec.json.encode(await render.completion(ENVELOPE, stream(*frames)))
    Completion.model_validate_json(raw, strict=True)
    return json.loads(raw)


async def chunks(*frames, **options):
    """The chunks for these events. OpenAI's type has it that each has a finish reason; their API has null, as ours."""
    found = [json.loads(chunk) async for chunk in render.chunks(ENVELOPE, stream(*frames), **options)]
    for chunk in found:
        ended = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        Completion.model_validate_json(json.dumps({**chunk, "choices": ended}), strict=True)
    return found


def choice(text, finish_reason="stop", index=0, logprobs=None):
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def reply(*choices, **more):
    return {**COMMON, "object": "text_completion", "choices": [*choices], **more}


def columns(*rows):
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


async def test_a_completion_is_all_text_at_once():
    frames = delta("b", 1), delta("a", 0), finished("length", 1), delta("A", 0), finished("stop", 0), DONE
    assert reply(choice("aA"), choice("b", "length", 1), usage=USAGE) == await completion(*frames)


@pytest.mark.parametrize("frames", [[finished()], [delta(), finished()]])
async def test_a_completion_without_text_is_empty(frames):
    assert [choice("")] == (await completion(*frames, DONE))["choices"]


async def test_chunks_are_text_and_finish_reason_for_each_answer():
    frames = delta(), delta("a", 1), delta("b", 0), finished("stop", 1), finished("length", 0), DONE
    choices = choice("a", None, 1), choice("b", None), choice("", "stop", 1), choice("", "length")
    assert [reply(one) for one in choices] == await chunks(*frames)


async def test_usage_comes_last_and_is_null_before():
    assert await chunks(delta("a"), finished(), DONE, include_usage=True) == [
        reply(choice("a", None), usage=None),
        reply(choice(""), usage=None),
        reply(usage=USAGE),
    ]


async def test_log_probabilities_are_columns_whose_offsets_count_the_text():
    frames = (
        delta("Größe", tokens=[scored("Größe", -0.5, ("Gras", -1.5), ("Größe", -0.5))]),
        delta(" 🦕", tokens=[scored(" 🦕", -2.0, ("!", -0.1))]),
        delta("."),
        delta("ab", tokens=[scored("a", -3.0), scored("b", -4.0)]),
    )
    rows = (
        ("Größe", -0.5, {"Gras": -1.5, "Größe": -0.5}, 0),
        (" 🦕", -2.0, {"!": -0.1, " 🦕": -2.0}, 5),
        ("a", -3.0, {"a": -3.0}, 8),
        ("b", -4.0, {"b": -4.0}, 9),
    )
    (whole,) = (await completion(*frames, finished(), DONE))["choices"]
    assert choice("Größe 🦕.ab", logprobs=columns(*rows)) == whole

    parts = [chunk["choices"][0] for chunk in await chunks(*frames, finished(), DONE)]
    expected = [columns(rows[0]), columns(rows[1]), None, columns(*rows[2:]), None]
    assert expected == [part["logprobs"] for part in parts]


async def test_each_answer_counts_its_own_text():
    frames = delta("aaa", 0), delta("b", 1, tokens=[scored("b")]), delta("c", 0, tokens=[scored("c")])
    found = await completion(*frames, finished(index=0), finished(index=1), DONE)
    assert [[3], [0]] == [choice["logprobs"]["text_offset"] for choice in found["choices"]]
