"""`osaurusctl bench`: how fast a model answers on this machine, as a client of the daemon sees it."""

import contextlib
import math
import random
import statistics
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

import msgspec

from osaurusctl.client import Client
from osaurusctl.errors import BrokenReply, CliError, from_body
from osaurusd.wire.admin import WorkerInfo
from osaurusd.wire.errors import ErrorBody

LIMIT_SECONDS = 10.0
"""Of decoding, after the first token: a slow machine yields fewer tokens. Of prompts, until the last one begins."""

_REPEATS = 3
_FEW_TOKENS = 2

# Common words, each one token in most vocabularies: a text of as many words has about as many tokens.
_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city community name
"""

_QUESTIONS = ("Which word comes first?", "How many words are these?")
_TASK = "Count from one to five hundred in words, one number a line, and leave none out."


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: answers of `tokens`, prompts of about `prompt_tokens`, and `streams` answers at once."""

    model: str
    tokens: int
    prompt_tokens: int
    streams: int


class Decode(msgspec.Struct, frozen=True, kw_only=True):
    """Answers decoded at once: all their tokens a second; None where too few came to tell."""

    streams: int
    tokens: int
    tokens_per_second: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; times are medians. `cached_tokens` of the warm prompt were not computed anew."""

    model: str
    device: str | None
    load_seconds: float | None
    memory_bytes: int
    prompt_tokens: int
    cached_tokens: int
    cold_ttft_seconds: float
    warm_ttft_seconds: float
    prefill_tokens_per_second: float
    decode: list[Decode]


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: ErrorBody | None = None


class _Answer(msgspec.Struct):
    """When an answer was asked for, and when each piece of it came. Without `usage` it was cut short."""

    sent: float
    pieces: list[float] = []
    usage: _Usage | None = None

    @property
    def ttft(self) -> float:
        return self.pieces[0] - self.sent

    @property
    def tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else len(self.pieces)


def measure(client: Client, plan: Plan, note: Callable[[str], None]) -> Report:
    """Measure `plan.model`, loading it first if need be; `note` is told what is under way.

    Raises:
        CliError: the daemon refused a request, or the model answers with nothing.
    """
    note(f"loading {plan.model}")
    worker = client.load(plan.model)
    if worker.in_flight:
        note("other requests are running on this model, and slow it down")
    _ask(client, plan.model, _random_text(2), _FEW_TOKENS)  # the first request has kernels compiled
    note("time to first token")
    pairs = _first_tokens(client, plan)
    decodes = []
    for streams in sorted({1, plan.streams}):
        note(f"decoding, {streams} at once")
        decodes.append(_decode(client, plan, streams))
    return _report(_worker_now(client, worker), pairs, decodes)


def _first_tokens(client: Client, plan: Plan) -> list[tuple[_Answer, _Answer]]:
    """Pairs of a prompt that is new, and one that begins like it."""
    pairs: list[tuple[_Answer, _Answer]] = []
    deadline = perf_counter() + LIMIT_SECONDS
    while not pairs or (len(pairs) < _REPEATS and perf_counter() < deadline):
        text = _random_text(plan.prompt_tokens)
        cold, warm = (_ask(client, plan.model, f"{text}. {question}", _FEW_TOKENS) for question in _QUESTIONS)
        pairs.append((cold, warm))
    return pairs


def _decode(client: Client, plan: Plan, streams: int) -> Decode:
    answers = _ask_at_once(client, plan, streams)
    took = max(answer.pieces[-1] for answer in answers) - min(answer.pieces[0] for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    # The first token of each came of its prompt's pass.
    return Decode(streams=streams, tokens=tokens, tokens_per_second=(tokens - streams) / took if took > 0 else None)


def _ask_at_once(client: Client, plan: Plan, streams: int) -> list[_Answer]:
    """The answers to prompts that are sent at the same time.

    Raises:
        CliError: the first failure of any.
    """
    answers: list[_Answer] = []
    failures: list[CliError] = []

    def ask() -> None:
        try:
            answers.append(_ask(client, plan.model, f"{_random_text(4)}. {_TASK}", plan.tokens, LIMIT_SECONDS))
        except CliError as error:
            failures.append(error)

    # Daemon threads: Ctrl-C ends the process without waiting for them, and that ends their requests.
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers


def _ask(client: Client, model: str, prompt: str, tokens: int, limit: float = math.inf) -> _Answer:
    """An answer, cut short once `limit` seconds have gone by since its first token."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = _Answer(sent=perf_counter())
    with contextlib.closing(client.chat(body)) as objects:
        for data in objects:
            _add(answer, _chunk(data))
            if answer.pieces and perf_counter() - answer.pieces[0] > limit:
                break
    if not answer.pieces:
        raise CliError(f"{model} answers with nothing, so there is nothing to measure", code="empty_answer")
    return answer


def _chunk(data: bytes) -> _Chunk:
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError as error:
        raise BrokenReply(str(error)) from error
    if chunk.error:
        raise from_body(chunk.error)
    return chunk


def _add(answer: _Answer, chunk: _Chunk) -> None:
    answer.usage = chunk.usage or answer.usage
    if any(choice.delta.content or choice.delta.reasoning_content for choice in chunk.choices):
        answer.pieces.append(perf_counter())


def _report(worker: WorkerInfo, pairs: list[tuple[_Answer, _Answer]], decodes: list[Decode]) -> Report:
    cold, warm = zip(*pairs, strict=True)
    usages = [(_complete(first), _complete(second), first.ttft) for first, second in pairs]
    return Report(
        model=worker.model,
        device=worker.device,
        load_seconds=worker.load_seconds,
        memory_bytes=worker.memory_bytes,
        prompt_tokens=usages[-1][0].prompt_tokens,
        cached_tokens=usages[-1][1].cached_tokens,
        cold_ttft_seconds=statistics.median(answer.ttft for answer in cold),
        warm_ttft_seconds=statistics.median(answer.ttft for answer in warm),
        prefill_tokens_per_second=statistics.median(
            (usage.prompt_tokens - usage.cached_tokens) / ttft for usage, _, ttft in usages
        ),
        decode=decodes,
    )


def _complete(answer: _Answer) -> _Usage:
    if answer.usage is None:
        raise BrokenReply("it has no `usage`, which was asked for")
    return answer.usage


def _worker_now(client: Client, worker: WorkerInfo) -> WorkerInfo:
    """The worker as it is after its work; as it was, if it is gone by now."""
    return next((each for each in client.workers() if each.model == worker.model), worker)


def _random_text(words: int) -> str:
    """Words in an order that no prompt has had, so that none of it is cached."""
    return " ".join(random.choices(_WORDS.split(), k=words))
