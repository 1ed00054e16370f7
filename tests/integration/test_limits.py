"""Requests beyond the capacity of the worker, with the real daemon and a tiny model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from osaurusd.worker.engine.planner import MAX_SEQUENCES
from tests.daemons import Daemon, suspended, wait_until
from tests.models import running_tiny

MAX_WAITING = 2
REQUESTS = MAX_SEQUENCES + MAX_WAITING + 16
TOKENS = 20
CONTEXT_LENGTH = 256

# A model with random weights samples the end token as often as any other.
NO_END_TOKEN = {"0": -100, "2": -100}


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    config = f"[worker]\nmax_waiting = {MAX_WAITING}\n"
    with running_tiny(module_home, tiny_tokenizer, config, max_position_embeddings=CONTEXT_LENGTH) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0, timeout=120) as client:
        yield client


def complete(client: OpenAI, content: str = "hello", **fields):
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],
        **{"max_tokens": TOKENS, "logit_bias": NO_END_TOKEN, **fields},
    )


def test_requests_beyond_the_queue_are_rejected_with_retry_after(daemon: Daemon, client: OpenAI) -> None:
    def attempt(number: int) -> object:
        try:
            return complete(client, f"{number}").usage.completion_tokens
        except openai.RateLimitError as error:
            return error.code, error.response.headers["Retry-After"]

    (worker,) = daemon.admin("GET", "/v0/workers")[1]
    with ThreadPoolExecutor(REQUESTS) as executor:
        # The worker receives all of them before it answers any.
        with suspended(worker["pid"]):
            attempts = executor.map(attempt, range(REQUESTS))
            wait_until(lambda: daemon.admin("GET", "/v0/workers")[1][0]["in_flight"] == REQUESTS)
        outcomes = list(attempts)

    served = [outcome for outcome in outcomes if outcome == TOKENS]
    assert {TOKENS, ("queue_full", "1")} == set(outcomes)
    assert len(served) >= MAX_SEQUENCES + MAX_WAITING
    assert TOKENS == complete(client).usage.completion_tokens


def test_completion_ends_when_the_context_is_full(client: OpenAI) -> None:
    completion = complete(client, max_tokens=None)

    assert CONTEXT_LENGTH == completion.usage.total_tokens
    assert "length" == completion.choices[0].finish_reason
