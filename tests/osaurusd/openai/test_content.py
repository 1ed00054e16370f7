"""Prompts and answers are logged for those who have asked for it, and then whole."""

import contextlib
import json

from osaurusd import ipc, log
from osaurusd.openai import content

ORDER = ipc.Generate(id=1, prompt=ipc.Text(text="question"), sampling=ipc.Sampling(temperature=0))
EVENTS = [
    ipc.Delta(id=1, reasoning="hm "),
    ipc.Delta(id=1, text="an "),
    ipc.Delta(id=1, index=1, text="other"),
    ipc.Delta(id=1, text="answer ", calls=[ipc.CallDelta(index=0, name="call", arguments="{}")]),
    ipc.Done(id=1, prompt_tokens=1, completion_tokens=2),
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
