"""The measurements. Each sends requests and returns its figures by name."""

import asyncio
import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests import daemons
from tests.bench.client import MeasurementError, Response, Stream
from tests.bench.models import STARTER, Model
from tests.bench.prompts import Messages, Prompts, user_message
from tests.bench.servers import RawProcess, Server
from tests.daemons import Daemon

PREFIX_TOKENS = 1200
WARM_REQUESTS = 3
LONG_TOKENS = 2000
SHORT_OUTPUT_TOKENS = 4
WARM_UP_TOKENS = 300
STEADY_SECONDS = 2.0
# A server notices a disconnected client at its next chunk.
SETTLE_SECONDS = 0.5
# More than the background streams generate until they disconnect.
ENDLESS_TOKENS = 6000

PLAIN_STREAMS, OTHER_STREAMS = 4, 3

STORY_SCHEMA = {
    "type": "object",
    "properties": {"story": {"type": "string", "minLength": 4000}},
    "required": ["story"],
    "additionalProperties": False,
}
"""Makes an output longer than its measurement."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Target:
    """A server under test, the model that it serves, and prompts for it."""

    server: Server
    model: Model
    prompts: Prompts

    async def request_all(self, fields: list[dict[str, Any]], max_tokens: int) -> list[Response]:
        """Send requests with these fields at the same time."""
        requests = (self.server.request(self.prompts.task(), max_tokens, **each) for each in fields)
        return await asyncio.gather(*requests)


Measurement = Callable[[Target], Coroutine[Any, Any, Figures]]


async def warm_up(target: Target) -> None:
    """Compile kernels and touch memory."""
    await target.request_all([{}] * 16, SHORT_OUTPUT_TOKENS)
    await target.server.request(target.prompts.exactly(WARM_UP_TOKENS), SHORT_OUTPUT_TOKENS)


async def decode(target: Target) -> Figures:
    """Measure a single stream."""
    response = await target.server.request(target.prompts.task(), target.model.single_tokens)
    return {"decode": response.rate}


def decode_raw(process: RawProcess, model: Model, prompts: Prompts) -> Figures:
    """Measure a single stream without a server."""
    return {"decode": process.measure_rate(prompts.token_ids(prompts.task()), model.single_tokens)}


async def streams(target: Target) -> Figures:
    """Measure 8 and 16 simultaneous streams: total tokens per second up to the last token, and TTFT."""
    figures = {}
    for count in (8, 16):
        responses = await target.request_all([{}] * count, target.model.batch_tokens)
        seconds = max(response.arrivals[-1] for response in responses) - min(response.sent for response in responses)
        figures[f"total {count}"] = sum(response.tokens for response in responses) / seconds
        figures[f"ttft p50 {count}"] = statistics.median(response.ttft for response in responses)
        figures[f"ttft max {count}"] = max(response.ttft for response in responses)
    return figures


async def prefix(target: Target) -> Figures:
    """Measure questions after a new system message: the first one is cold, the others are warm."""
    system = target.prompts.system(PREFIX_TOKENS)
    cold, *warm = [
        (await request_exactly(target, target.prompts.question(system))).ttft for _ in range(1 + WARM_REQUESTS)
    ]
    return {"ttft cold": cold, "ttft warm": statistics.median(warm), "warm/cold": statistics.median(warm) / cold}


async def stall(target: Target) -> Figures:
    """Measure how long two running streams pause while a long prompt is processed."""
    return await pauses(target, lambda: request_exactly(target, target.prompts.exactly(LONG_TOKENS)))


async def pauses(target: Target, send: Callable[[], Coroutine[Any, Any, Response]]) -> Figures:
    """Measure how long two running streams pause while a request that `send` sends is processed.

    The normal gap is the median over the steady seconds before the request. The longest gap is measured from the time
    at which it is sent until shortly after its first token.
    """
    background = [await target.server.start_stream(target.prompts.task(), ENDLESS_TOKENS) for _ in range(2)]
    try:
        for stream in background:
            await stream.wait_for_start()
        await asyncio.sleep(STEADY_SECONDS)
        long = await send()
        await asyncio.sleep(0.2)
    finally:
        for stream in background:
            stream.disconnect()
    await asyncio.sleep(SETTLE_SECONDS)
    normal = statistics.median(
        gap for stream in background for gap in gaps(stream, long.sent - STEADY_SECONDS, long.sent)
    )
    longest = max(gap for stream in background for gap in gaps(stream, long.sent, long.arrivals[0] + 0.2))
    return {"gap": normal, "longest gap": longest, "stall": longest / normal, "ttft long": long.ttft}


async def seeded(target: Target) -> Figures:
    """Measure plain streams in a batch with seeded ones."""
    return await compare_batches(target, [{"seed": seed, "temperature": 1.0} for seed in range(OTHER_STREAMS)])


async def constrained(target: Target) -> Figures:
    """Measure plain streams in a batch with streams that follow a JSON schema."""
    schema = {"name": "story", "schema": STORY_SCHEMA, "strict": True}
    response_format = {"type": "json_schema", "json_schema": schema}
    return await compare_batches(target, [{"response_format": response_format}] * OTHER_STREAMS)


async def compare_batches(target: Target, others: list[dict[str, Any]]) -> Figures:
    """Measure the median rate of a plain stream in a batch of plain streams, and in a batch with `others`."""
    plain: list[dict[str, Any]] = [{}] * PLAIN_STREAMS
    return {
        "plain batch": await plain_rate(target, plain + [{}] * OTHER_STREAMS),
        "mixed batch": await plain_rate(target, plain + others),
    }


async def plain_rate(target: Target, fields: list[dict[str, Any]]) -> float:
    """Return the pieces of text per second of the plain streams, while all streams are being decoded."""
    responses = await target.request_all(fields, target.model.mixed_tokens)
    start = max(response.arrivals[0] for response in responses)
    end = min(response.arrivals[-1] for response in responses)
    if end <= start:
        raise MeasurementError("the streams were never all decoded at the same time")
    counts = [sum(start < time <= end for time in response.arrivals) for response in responses[:PLAIN_STREAMS]]
    return statistics.median(counts) / (end - start)


async def request_exactly(target: Target, messages: Messages) -> Response:
    """Send a prompt, and check that the server reports the expected number of prompt tokens."""
    response = await target.server.request(messages, SHORT_OUTPUT_TOKENS)
    expected, actual = target.prompts.count(messages), response.usage["prompt_tokens"]
    if expected != actual:
        raise MeasurementError(
            f"{target.server.model}: expected a prompt of {expected} tokens, the server has {actual}"
        )
    return response


def gaps(stream: Stream, start: float, end: float) -> list[float]:
    """Return the seconds between pieces of text that overlap the time from `start` to `end`."""
    # If the stream is stalled at `end`, the last gap is at least this long.
    times = [*(time for time in stream.partial_response().arrivals if time < end), end]
    return [later - earlier for earlier, later in itertools.pairwise(times) if later > start]


def start_daemon(home: Path) -> Figures:
    """Measure the time from spawn to the first 200 of `/health`, and the resident memory of the idle daemon."""
    started = perf_counter()
    with daemons.running(home) as daemon:
        url = urlsplit(daemon.url)
        connection = HTTPConnection(url.hostname or "", url.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        ready = perf_counter() - started
        connection.close()
        daemon.admin("GET", "/v0/models")
        return {"ready": ready, "resident": psutil.Process(daemon.process.pid).memory_info().rss / 1e6}


def use_daemon(home: Path, daemon: Daemon) -> Figures:
    """Measure `osaurusctl ls`, and the first token of a model that is not loaded."""
    command = [sys.executable, "-m", "osaurusctl", "ls"]
    started = perf_counter()
    subprocess.run(command, env=daemons.environment(home), check=True, capture_output=True)
    ls = perf_counter() - started
    url = urlsplit(daemon.url)
    server = Server(url.hostname or "", url.port or 0, STARTER)
    response = asyncio.run(server.request([user_message("Hello!")], SHORT_OUTPUT_TOKENS))
    daemon.admin("POST", "/v0/unload", {"force": True})
    return {"ls": ls, "first token": response.ttft}
