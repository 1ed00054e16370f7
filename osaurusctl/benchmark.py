"""Measure how fast a model answers on this machine, from the point of view of a client of the daemon."""

import contextlib
import math
import random
import statistics
import threading
from collections.abc import Callable
from time import perf_counter

import msgspec

from osaurusctl.chat.stream import ChatChunk, stream_chat
from osaurusctl.client import Client
from osaurusctl.errors import CliError, InvalidReply
from osaurusd.wire.admin import WorkerInfo

LIMIT_SECONDS = 10.0
"""The time limit of each measurement: a slow machine decodes fewer tokens, and runs fewer prompts."""

_PROMPT_REPEATS = 3
_TTFT_TOKENS = 2

# Common words that are one token in most vocabularies: a text of n words has about n tokens.
_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city community name
"""

_QUESTIONS = ("Which word comes first?", "How many words are these?")
_DECODE_TASK = "Count from one to five hundred in words, one number a line, and leave none out."


class BenchmarkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Answers have `tokens` tokens, prompts about `prompt_tokens`; `streams` requests run concurrently."""

    model: str
    tokens: int
    prompt_tokens: int
    streams: int


class DecodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Decode throughput of all concurrent requests together; None if there were too few tokens to measure."""

    streams: int
    tokens: int
    tokens_per_second: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The results. Times are medians; `cached_tokens` of the warm prompt came from the prefix cache."""

    model: str
    device: str | None
    load_seconds: float | None
    memory_bytes: int
    prompt_tokens: int
    cached_tokens: int
    cold_ttft_seconds: float
    warm_ttft_seconds: float
    prefill_tokens_per_second: float
    decode: list[DecodeResult]


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0


class _Timing(msgspec.Struct):
    """When a request was sent and when each chunk with text arrived. `usage` is None if the answer was cut short."""

    sent: float
    arrivals: list[float] = []
    usage: _Usage | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else len(self.arrivals)


def measure(client: Client, options: BenchmarkOptions, report_progress: Callable[[str], None]) -> Report:
    """Load the model if necessary and measure it.

    Raises:
        CliError: a request failed, or the model returned an empty answer.
    """
    report_progress(f"loading {options.model}")
    worker = client.load(options.model)
    if worker.in_flight:
        report_progress("warning: other requests are running on this model and slow the benchmark down")
    _send(client, options.model, _random_text(2), _TTFT_TOKENS)  # warms up: the first request compiles kernels
    report_progress("measuring time to first token")
    pairs = _measure_ttft(client, options)
    decode = []
    for streams in sorted({1, options.streams}):
        report_progress(f"measuring decode throughput with {streams} {'stream' if streams == 1 else 'streams'}")
        decode.append(_measure_decode(client, options, streams))
    return _build_report(_refresh(client, worker), pairs, decode)


def _measure_ttft(client: Client, options: BenchmarkOptions) -> list[tuple[_Timing, _Timing]]:
    """Measure pairs of a new prompt and one with the same prefix."""
    pairs: list[tuple[_Timing, _Timing]] = []
    deadline = perf_counter() + LIMIT_SECONDS
    while not pairs or (len(pairs) < _PROMPT_REPEATS and perf_counter() < deadline):
        text = _random_text(options.prompt_tokens)
        cold, warm = (_send(client, options.model, f"{text}. {question}", _TTFT_TOKENS) for question in _QUESTIONS)
        pairs.append((cold, warm))
    return pairs


def _measure_decode(client: Client, options: BenchmarkOptions, streams: int) -> DecodeResult:
    timings = _send_concurrently(client, options, streams)
    elapsed = max(timing.arrivals[-1] for timing in timings) - min(timing.arrivals[0] for timing in timings)
    tokens = sum(timing.tokens for timing in timings)
    # The first token of each answer is part of its prefill.
    rate = (tokens - streams) / elapsed if elapsed > 0 else None
    return DecodeResult(streams=streams, tokens=tokens, tokens_per_second=rate)


def _send_concurrently(client: Client, options: BenchmarkOptions, streams: int) -> list[_Timing]:
    """Send requests at the same time.

    Raises:
        CliError: the first failure of any request.
    """
    timings: list[_Timing] = []
    failures: list[CliError] = []

    def send() -> None:
        prompt = f"{_random_text(4)}. {_DECODE_TASK}"
        try:
            timings.append(_send(client, options.model, prompt, options.tokens, LIMIT_SECONDS))
        except CliError as error:
            failures.append(error)

    # Daemon threads: Ctrl-C exits without waiting for them, which closes their connections and cancels the requests.
    threads = [threading.Thread(target=send, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return timings


def _send(client: Client, model: str, prompt: str, max_tokens: int, time_limit: float = math.inf) -> _Timing:
    """Send a request and record its timing; stop reading `time_limit` seconds after the first token."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    timing = _Timing(sent=perf_counter())
    with contextlib.closing(stream_chat(client, request)) as chunks:
        for chunk in chunks:
            _record(timing, chunk)
            if timing.arrivals and perf_counter() - timing.arrivals[0] > time_limit:
                break
    if not timing.arrivals:
        raise CliError(f"{model} returned an empty answer, so its speed cannot be measured", code="empty_answer")
    return timing


def _record(timing: _Timing, chunk: ChatChunk) -> None:
    if chunk.usage:
        try:
            timing.usage = msgspec.convert(chunk.usage, _Usage)
        except msgspec.ValidationError as error:
            raise InvalidReply(str(error)) from error
    if chunk.text or chunk.reasoning:
        timing.arrivals.append(perf_counter())


def _build_report(worker: WorkerInfo, pairs: list[tuple[_Timing, _Timing]], decode: list[DecodeResult]) -> Report:
    cold, warm = zip(*pairs, strict=True)
    usages = [(_require_usage(first), _require_usage(second), first.ttft) for first, second in pairs]
    return Report(
        model=worker.model,
        device=worker.device,
        load_seconds=worker.load_seconds,
        memory_bytes=worker.memory_bytes,
        prompt_tokens=usages[-1][0].prompt_tokens,
        cached_tokens=usages[-1][1].cached_tokens,
        cold_ttft_seconds=statistics.median(timing.ttft for timing in cold),
        warm_ttft_seconds=statistics.median(timing.ttft for timing in warm),
        prefill_tokens_per_second=statistics.median(
            (usage.prompt_tokens - usage.cached_tokens) / ttft for usage, _, ttft in usages
        ),
        decode=decode,
    )


def _require_usage(timing: _Timing) -> _Usage:
    if timing.usage is None:
        raise InvalidReply("the stream has no `usage`, although the request included it")
    return timing.usage


def _refresh(client: Client, worker: WorkerInfo) -> WorkerInfo:
    """Return the current state of the worker, or the given one if the model has been unloaded."""
    return next((each for each in client.workers() if each.model == worker.model), worker)


def _random_text(words: int) -> str:
    """Return random words, so that no prefix of the text is in the prefix cache."""
    return " ".join(random.choices(_WORDS.split(), k=words))
