"""Prompts and answers are logged for those who have asked for it, and then whole."""

import contextlib
import json

from osaurusd import log
from osaurusd.inference.events import Completed, Delta, ToolCallDelta
from osaurusd.inference.request import SamplingParams, TextPrompt
from osaurusd.protocols.openai import content
from osaurusd.rpc import messages

ORDER = messages.Generate(id=1, prompt=TextPrompt(text="question"), sampling=SamplingParams(temperature=0))
EVENTS = [
    Delta(id=1, reasoning="hm "),
    Delta(id=1, text="an "),
    Delta(id=1, index=1, text="other"),
    Delta(id=1, text="answer ", calls=[ToolCallDelta(index=0, name="call", arguments="{}")]),
    Completed(id=1, prompt_tokens=1, completion_tokens=2),
]


async def events():
    for event in EVENTS:
        yield event


def logged(file):
    return {line["event"]: line for line in map(json.loads, file.read_text().splitlines())}


async def test_events_pass_as_they_are_and_both_sides_are_logged(tmp_path):
    file = tmp_path / "log"
    with log.configured("info", file, None):
        async with contextlib.aclosing(content.logged(events(), [ORDER])) as found:
            assert [event async for event in found] == EVENTS
    lines = logged(file)
    assert lines["prompt"]["prompts"][0]["text"] == "question"
    assert lines["answer"]["answers"] == {"0": "hm an answer call{}", "1": "other"}


async def test_what_came_of_an_answer_that_was_broken_off_is_logged(tmp_path):
    file = tmp_path / "log"
    with log.configured("info", file, None):
        async with contextlib.aclosing(content.logged(events(), [ORDER])) as found:
            await anext(found)
    assert logged(file)["answer"]["answers"] == {"0": "hm "}
