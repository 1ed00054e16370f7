"""What a protocol costs: the same streams in each one, and the daemon's processor time for them."""

import asyncio
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

from tests.bench.client import Stream, start_request
from tests.bench.measurements import Figures, Target
from tests.bench.prompts import Messages

STREAMS = 16
REPETITIONS = 6
"""Each repetition measures all protocols, in alternating order."""


class Protocol(NamedTuple):
    """A protocol.

    Attributes:
        path: where requests are sent.
        limits: returns the fields that limit the output to a number of tokens, at temperature 0.
        prompt: the name of the field with the messages.
        count: returns the number of output tokens from an event, if it has one.
    """

    path: str
    limits: Callable[[int], dict[str, Any]]
    count: Callable[[dict[str, Any]], int | None]
    prompt: str = "messages"


def _limit(name: str, **fields: object) -> Callable[[int], dict[str, Any]]:
    return lambda tokens: {name: tokens, "temperature": 0, **fields}


PROTOCOLS = {
    "chat": Protocol(
        "/v1/chat/completions",
        _limit("max_tokens", stream_options={"include_usage": True}),
        lambda event: (event.get("usage") or {}).get("completion_tokens"),
    ),
    "responses": Protocol(
        "/v1/responses",
        _limit("max_output_tokens", store=False),
        lambda event: (event.get("response", {}).get("usage") or {}).get("output_tokens"),
        prompt="input",
    ),
    "anthropic": Protocol(
        "/v1/messages", _limit("max_tokens"), lambda event: event.get("usage", {}).get("output_tokens")
    ),
    "ollama": Protocol(
        "/api/chat",
        lambda tokens: {"options": {"num_predict": tokens, "temperature": 0}},
        lambda event: event.get("eval_count"),
    ),
}


class _Sample(NamedTuple):
    """One run of the streams: tokens, seconds, and seconds of the daemon's processor time."""

    tokens: int
    seconds: float
    processor_seconds: float


async def protocols(target: Target) -> Figures:
    """Measure 16 simultaneous streams in each protocol: tokens per second, and the daemon's time for a token."""
    samples: dict[str, list[_Sample]] = {name: [] for name in PROTOCOLS}
    for repetition in range(REPETITIONS):
        for name in list(samples)[:: 1 if repetition % 2 == 0 else -1]:
            samples[name].append(await _run(target, PROTOCOLS[name]))
    return {figure: value for name in samples for figure, value in _figures(name, samples[name]).items()}


def _figures(name: str, samples: list[_Sample]) -> Figures:
    """Return the median rate, and the mean cost in microseconds: the clock of processor time is coarse."""
    used, tokens = sum(each.processor_seconds for each in samples), sum(each.tokens for each in samples)
    rate = statistics.median(each.tokens / each.seconds for each in samples)
    return {f"{name} rate": rate, f"{name} cost": used / tokens * 1e6}


async def _run(target: Target, protocol: Protocol) -> _Sample:
    daemon = psutil.Process(target.server.pid)
    before = daemon.cpu_times()
    tokens = target.model.protocol_tokens
    streams = [await _start(target, protocol, target.prompts.task(), tokens) for _ in range(STREAMS)]
    await asyncio.gather(*(stream.wait_for_end() for stream in streams))
    after = daemon.cpu_times()
    return _Sample(
        tokens=sum(_count_tokens(stream, protocol) for stream in streams),
        seconds=max(stream.ended for stream in streams) - min(stream.sent for stream in streams),
        processor_seconds=after.user + after.system - before.user - before.system,
    )


async def _start(target: Target, protocol: Protocol, messages: Messages, tokens: int) -> Stream:
    body = {"model": target.server.model, "stream": True, protocol.prompt: messages, **protocol.limits(tokens)}
    return await start_request(target.server.host, target.server.port, protocol.path, body)


def _count_tokens(stream: Stream, protocol: Protocol) -> int:
    counts = [protocol.count(event) for _, event in stream.events()]
    return next(count for count in reversed(counts) if count is not None)
