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
REPETITIONS = 4
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


async def protocols(target: Target) -> Figures:
    """Measure 16 simultaneous streams in each protocol: tokens per second, and the daemon's time for a token."""
    figures: dict[str, list[float]] = {}
    names = list(PROTOCOLS)
    for repetition in range(REPETITIONS):
        for name in names if repetition % 2 == 0 else reversed(names):
            rate, cost = await _measure(target, PROTOCOLS[name])
            figures.setdefault(f"{name} rate", []).append(rate)
            figures.setdefault(f"{name} cost", []).append(cost)
    return {name: statistics.mean(values) for name, values in figures.items()}


async def _measure(target: Target, protocol: Protocol) -> tuple[float, float]:
    """Return the tokens per second, and the microseconds of processor time per token."""
    tokens = target.model.protocol_tokens
    daemon = psutil.Process(target.server.pid)
    before = daemon.cpu_times()
    streams = [await _start(target, protocol, target.prompts.task(), tokens) for _ in range(STREAMS)]
    await asyncio.gather(*(stream.wait_for_end() for stream in streams))
    after = daemon.cpu_times()
    count = sum(_count_tokens(stream, protocol) for stream in streams)
    seconds = max(stream.ended for stream in streams) - min(stream.sent for stream in streams)
    used = after.user + after.system - before.user - before.system
    return count / seconds, used / count * 1e6


async def _start(target: Target, protocol: Protocol, messages: Messages, tokens: int) -> Stream:
    body = {"model": target.server.model, "stream": True, protocol.prompt: messages, **protocol.limits(tokens)}
    return await start_request(target.server.host, target.server.port, protocol.path, body)


def _count_tokens(stream: Stream, protocol: Protocol) -> int:
    counts = [protocol.count(event) for _, event in stream.events()]
    return next(count for count in reversed(counts) if count is not None)
