"""The measurements: each makes requests and returns its figures by name."""

import asyncio
import itertools
import statistics
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.bench.client import Answer, Call, Refused
from tests.bench.models import Model
from tests.bench.prompts import Messages, Prompts
from tests.bench.servers import Raw, Server

PREFIX_TOKENS = 1200
LONG_TOKENS = 2000
FEW_TOKENS = 4
WARM = 3
WARM_UP_TOKENS = 300
STEADY_SECONDS = 2.0
# Requests that hung up are noticed at the next chunk.
SETTLE_SECONDS = 0.5
# More than the running streams need until they hang up.
ENDLESS_TOKENS = 6000

FREE, GUESTS = 4, 3

STORY = {
    "type": "object",
    "properties": {"story": {"type": "string", "minLength": 4000}},
    "required": ["story"],
    "additionalProperties": False,
}
"""Keeps an answer going for longer than it is measured."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Place:
    """A server, the model it serves, and prompts for it."""

    server: Server
    model: Model
    prompts: Prompts

    async def ask_all(self, requests: list[tuple[Messages, dict[str, Any]]], tokens: int) -> list[Answer]:
        """The answers to requests that are sent at once."""
        return await asyncio.gather(*(self.server.ask(messages, tokens, **fields) for messages, fields in requests))

    def tasks(self, count: int) -> list[tuple[Messages, dict[str, Any]]]:
        return [(self.prompts.task(), {}) for _ in range(count)]


Measurement = Callable[[Place], Coroutine[Any, Any, Figures]]


async def warm_up(place: Place) -> None:
    """Have kernels compiled and pages touched."""
    await place.ask_all(place.tasks(16), FEW_TOKENS)
    await place.server.ask(place.prompts.exactly(WARM_UP_TOKENS), FEW_TOKENS)


async def decode(place: Place) -> Figures:
    """One stream."""
    answer = await place.server.ask(place.prompts.task(), place.model.alone)
    return {"decode": answer.rate}


def decode_raw(raw: Raw, model: Model, prompts: Prompts) -> Figures:
    """The same without a server."""
    return {"decode": raw.rate(prompts.ids(prompts.task()), model.alone)}


async def streams(place: Place) -> Figures:
    """8 and 16 streams that begin together: all their tokens over the time until the last one, and their TTFT."""
    figures = {}
    for count in (8, 16):
        answers = await place.ask_all(place.tasks(count), place.model.together)
        took = max(answer.arrivals[-1] for answer in answers) - min(answer.sent for answer in answers)
        figures[f"total {count}"] = sum(answer.tokens for answer in answers) / took
        figures[f"ttft p50 {count}"] = statistics.median(answer.ttft for answer in answers)
        figures[f"ttft max {count}"] = max(answer.ttft for answer in answers)
    return figures


async def prefix(place: Place) -> Figures:
    """Questions under one new system message: the first one is cold, the others are warm."""
    system = place.prompts.system(PREFIX_TOKENS)
    cold, *warm = [(await _ask_exactly(place, place.prompts.question(system))).ttft for _ in range(1 + WARM)]
    return {"ttft cold": cold, "ttft warm": statistics.median(warm), "warm/cold": statistics.median(warm) / cold}


async def stall(place: Place) -> Figures:
    """Two streams run steadily, then a long prompt comes.

    The normal gap is the median one of the steady seconds; the longest is looked for from the sending of the long
    prompt until shortly after its first token.
    """
    running = [await place.server.call(place.prompts.task(), ENDLESS_TOKENS) for _ in range(2)]
    try:
        for call in running:
            await call.begun()
        await asyncio.sleep(STEADY_SECONDS)
        long = await _ask_exactly(place, place.prompts.exactly(LONG_TOKENS))
        await asyncio.sleep(0.2)
    finally:
        for call in running:
            call.hang_up()
    await asyncio.sleep(SETTLE_SECONDS)
    normal = statistics.median(gap for call in running for gap in _gaps(call, long.sent - STEADY_SECONDS, long.sent))
    longest = max(gap for call in running for gap in _gaps(call, long.sent, long.arrivals[0] + 0.2))
    return {"gap": normal, "longest gap": longest, "stall": longest / normal, "ttft long": long.ttft}


async def seeded(place: Place) -> Figures:
    """Free streams beside seeded ones."""
    return await _beside(place, [{"seed": at, "temperature": 1.0} for at in range(GUESTS)])


async def constrained(place: Place) -> Figures:
    """Free streams beside ones that must write JSON."""
    schema = {"name": "story", "schema": STORY, "strict": True}
    return await _beside(place, [{"response_format": {"type": "json_schema", "json_schema": schema}}] * GUESTS)


async def _beside(place: Place, guests: list[dict[str, Any]]) -> Figures:
    """The median rate of a free stream: among seven free ones, and among four and three guests."""
    fields: list[dict[str, Any]] = [{}] * FREE
    return {
        "free alone": await _rate_of_free(place, fields + [{}] * GUESTS),
        "free beside": await _rate_of_free(place, fields + guests),
    }


async def _rate_of_free(place: Place, fields: list[dict[str, Any]]) -> float:
    """Pieces of text a second in the first streams, while all of `fields` are being decoded."""
    answers = await place.ask_all([(place.prompts.task(), each) for each in fields], place.model.beside)
    start = max(answer.arrivals[0] for answer in answers)
    end = min(answer.arrivals[-1] for answer in answers)
    if end <= start:
        raise Refused("the streams were never decoded all together")
    return statistics.median(_count(answer, start, end) for answer in answers[:FREE]) / (end - start)


def _count(answer: Answer, start: float, end: float) -> int:
    return sum(start < moment <= end for moment in answer.arrivals)


async def _ask_exactly(place: Place, messages: Messages) -> Answer:
    """An answer of a few tokens to a prompt whose length must be as the server counts it."""
    answer = await place.server.ask(messages, FEW_TOKENS)
    expected, counted = place.prompts.count(messages), answer.usage["prompt_tokens"]
    if expected != counted:
        raise Refused(f"a prompt of {expected} tokens is one of {counted} to {place.server.model}")
    return answer


def _gaps(call: Call, start: float, end: float) -> list[float]:
    """The seconds between pieces of text, as far as they reach into the time from `start` to `end`."""
    arrivals = call.so_far().arrivals
    # A stream that stands still at `end` has a gap that is at least as long as this.
    moments = [*(moment for moment in arrivals if moment < end), end]
    return [later - earlier for earlier, later in itertools.pairwise(moments) if later > start]
