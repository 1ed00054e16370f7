"""Events become legacy completions, whole and streamed, that OpenAI's own type accepts."""

import json

import msgspec
import pytest
from openai.types import Completion

from osaurusd.inference.events import Started, TokenLogprob
from osaurusd.protocols.openai import rendering
from osaurusd.protocols.openai.logprobs import MIN_LOGPROB, chat_logprobs, completion_logprobs
from tests.osaurusd.inference.builders import COMPLETED, delta, finished, stream, token

from .test_chat_rendering import COMMON, HEAD, USAGE


async def completion(*events):
    raw = msgspec.json.encode(await rendering.collect_completion(HEAD, stream(Started(prompt_tokens=1), *events)))
    Completion.model_validate_json(raw, strict=True)
    return json.loads(raw)


async def chunks(*events, **options):
    """Render a stream. OpenAI's type requires a finish reason in each chunk; their API sends null, and so do we."""
    events = stream(Started(prompt_tokens=1), *events)
    rendered = [json.loads(chunk) async for chunk in rendering.stream_completion(HEAD, events, **options)]
    for chunk in rendered:
        ended = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        Completion.model_validate_json(json.dumps({**chunk, "choices": ended}), strict=True)
    return rendered


def choice(text, finish_reason="stop", index=0, logprobs=None):
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def response(*choices, **fields):
    return {**COMMON, "object": "text_completion", "choices": [*choices], **fields}


def columns(*rows):
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


async def test_completion_has_the_whole_text_of_each_choice():
    events = delta("b", 1), delta("a", 0), finished("length", 1), delta("A", 0), finished("stop", 0), COMPLETED
    assert await completion(*events) == response(choice("aA"), choice("b", "length", 1), usage=USAGE)


@pytest.mark.parametrize("events", [[finished()], [delta(), finished()]])
async def test_completion_without_text_is_empty(events):
    assert (await completion(*events, COMPLETED))["choices"] == [choice("")]


async def test_stream_is_text_and_finish_reason_of_each_choice():
    events = delta(), delta("a", 1), delta("b", 0), finished("stop", 1), finished("length", 0), COMPLETED
    choices = choice("a", None, 1), choice("b", None), choice("", "stop", 1), choice("", "length")
    assert await chunks(*events) == [response(each) for each in choices]


async def test_usage_is_in_the_last_chunk_and_null_before():
    assert await chunks(delta("a"), finished(), COMPLETED, include_usage=True) == [
        response(choice("a", None), usage=None),
        response(choice(""), usage=None),
        response(usage=USAGE),
    ]


async def test_logprobs_are_columns_whose_offsets_count_characters():
    events = (
        delta("Größe", logprobs=[token("Größe", -0.5, ("Gras", -1.5), ("Größe", -0.5))]),
        delta(" 🦕", logprobs=[token(" 🦕", -2.0, ("!", -0.1))]),
        delta("."),
        delta("ab", logprobs=[token("a", -3.0), token("b", -4.0)]),
    )
    rows = (
        ("Größe", -0.5, {"Gras": -1.5, "Größe": -0.5}, 0),
        (" 🦕", -2.0, {"!": -0.1, " 🦕": -2.0}, 5),
        ("a", -3.0, {"a": -3.0}, 8),
        ("b", -4.0, {"b": -4.0}, 9),
    )
    (whole,) = (await completion(*events, finished(), COMPLETED))["choices"]
    assert whole == choice("Größe 🦕.ab", logprobs=columns(*rows))

    pieces = [chunk["choices"][0]["logprobs"] for chunk in await chunks(*events, finished(), COMPLETED)]
    assert pieces == [columns(rows[0]), columns(rows[1]), None, columns(*rows[2:]), None]


async def test_offsets_of_each_choice_count_its_own_text():
    events = delta("aaa", 0), delta("b", 1, logprobs=[token("b")]), delta("c", 0, logprobs=[token("c")])
    choices = (await completion(*events, finished(index=0), finished(index=1), COMPLETED))["choices"]
    assert [each["logprobs"]["text_offset"] for each in choices] == [[3], [0]]


def test_logprobs_without_tokens_are_null():
    assert chat_logprobs([]) is None
    assert completion_logprobs([], 0) is None


def test_first_token_of_a_prompt_has_no_logprob():
    logprobs = completion_logprobs([token("Once", None), token(" upon", -1.0)], 0)
    assert (logprobs.token_logprobs, logprobs.top_logprobs) == ([None, -1.0], [None, {" upon": -1.0}])


@pytest.mark.parametrize("logprob", [float("-inf"), -1e9])
def test_impossible_token_has_a_finite_logprob(logprob):
    tokens = [token("a", logprob, ("b", logprob))]
    (rendered,) = chat_logprobs(tokens).content
    legacy = completion_logprobs(tokens, 0)

    assert [rendered.logprob, rendered.top_logprobs[0].logprob] == [MIN_LOGPROB] * 2
    assert (legacy.token_logprobs, legacy.top_logprobs) == ([MIN_LOGPROB], [{"a": MIN_LOGPROB, "b": MIN_LOGPROB}])


def test_most_likely_of_tokens_with_the_same_text_counts():
    logprobs = completion_logprobs([token("\ufffd", -0.1, ("\ufffd", -0.1), ("\ufffd", -5.0))], 0)
    assert logprobs.top_logprobs == [{"\ufffd": -0.1}]


def test_character_of_several_tokens_counts_where_it_ends():
    halves = [TokenLogprob(text="\ufffd", bytes=[byte], logprob=-1.0) for byte in "é".encode()]
    assert completion_logprobs([*halves, token("x")], 3).text_offset == [3, 3, 4]
