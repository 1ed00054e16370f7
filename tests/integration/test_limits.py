"""What happens when more comes in than there is room for. The real daemon and worker, a tiny model."""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from osaurusd.worker.engine.decode import MAX_SEQUENCES
from tests import daemons
from tests.daemons import Daemon
from tests.models import make_tiny

MAX_WAITING = 2
MANY = 3 * MAX_SEQUENCES

# An end token is as likely as any other to a model with random weights.
NEVER_END = {"0": -100, "2": -100}


@pytest.fixture(scope="module")
def daemon(smollm_folder: Path) -> Iterator[Daemon]:
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    make_tiny(home / "models" / "tiny", smollm_folder)
    (home / "config.toml").write_text(f"[worker]\nmax_waiting = {MAX_WAITING}\n")
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/load", {"model": "tiny"})
        yield daemon
    shutil.rmtree(home, ignore_errors=True)


def ask(daemon: Daemon, content: str = "hello", **fields):
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0, timeout=120) as client:
        return client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": content}],
            **{"max_tokens": 400, "logit_bias": NEVER_END, **fields},
        )


def test_too_many_are_refused_at_once_and_told_when_to_come_back(daemon: Daemon) -> None:
    def attempt(number: int) -> object:
        try:
            return ask(daemon, f"{number}").usage.completion_tokens
        except openai.RateLimitError as refusal:
            return refusal.code, refusal.response.headers["Retry-After"]

    with ThreadPoolExecutor(MANY) as executor:
        outcomes = list(executor.map(attempt, range(MANY)))

    served = [outcome for outcome in outcomes if outcome == 400]
    assert {400, ("queue_full", "1")} == set(outcomes)
    assert len(served) >= MAX_SEQUENCES + MAX_WAITING
    assert 400 == ask(daemon).usage.completion_tokens


def test_an_answer_ends_where_the_context_is_full(daemon: Daemon) -> None:
    reply = ask(daemon, max_tokens=None)

    assert 2048 == reply.usage.total_tokens
    assert "length" == reply.choices[0].finish_reason
