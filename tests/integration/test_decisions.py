"""Decisions by a real worker, through OpenAI's client."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from tests import daemons
from tests.conftest import TINY
from tests.daemons import Daemon, suspended, wait_until
from tests.models import make_tiny


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon with a random model. `test_starter_model.py` asks a trained one."""
    make_tiny(module_home / "models" / TINY, tiny_tokenizer)
    with daemons.running(module_home) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client


def choice(instructions, values, **fields):
    choices = [{"value": value} for value in values]
    return {"type": "choice", "instructions": instructions, "choices": choices, **fields}


def decide(client: OpenAI, text, *questions):
    return client.decisions.create(model=TINY, input=text, questions=list(questions))


def by_value(answer):
    return {each.value: each.probability for each in answer.probabilities}


def test_the_order_of_the_options_does_not_matter(client):
    text, question = "I was charged twice for my subscription.", "What is the message about?"
    topics = ["billing", "weather", "sports"]
    orders = [topics, topics[::-1], [*topics[1:], topics[0]]]
    answers = decide(client, text, *(choice(question, order) for order in orders)).answers
    first, *others = map(by_value, answers)
    for other in others:
        assert other == pytest.approx(first, abs=1e-3)


def test_all_kinds_of_questions_share_one_input(client):
    text = "The food was delicious, and the staff were friendly. " * 12
    questions = [
        {"type": "predicate", "name": "positive", "instructions": "The review is positive."},
        {
            "type": "score",
            "instructions": [{"type": "input_text", "text": "How happy is the writer?"}],
            "levels": [{"label": "unhappy"}, {"label": "neutral", "description": "neither"}, {"label": "happy"}],
        },
        choice("Is it a review?", [True, False]),
    ]
    decision = decide(client, [{"role": "user", "content": text}], *questions)
    predicate, score, boolean = decision.answers
    assert predicate.name == "positive"
    assert 0 < predicate.probability < 1
    assert [(level.label, level.value) for level in score.probabilities] == [
        ("unhappy", 0),
        ("neutral", 1),
        ("happy", 2),
    ]
    assert score.score == pytest.approx(sum(level.value * level.probability for level in score.probabilities))
    assert boolean.choice in (True, False)
    again = decide(client, [{"role": "user", "content": text}], *questions)
    assert again.usage.input_tokens == decision.usage.input_tokens == again.usage.total_tokens
    assert again.usage.input_tokens_details.cached_tokens >= 12 * 10
    assert again.usage.output_tokens == 0
    assert again.answers[0].probability == pytest.approx(predicate.probability, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "questions", "param"),
    [
        ("x", [choice("Which?", ["a"])], "questions[0].choices"),
        ("x", [choice("Which?", ["a", "b"]), choice(" ", ["a", "b"])], "questions[1].instructions"),
        ("word " * 9000, [choice("Which?", ["a", "b"])], "input"),
        ("x", [choice("Which?", ["a", "b"]), choice("word " * 9000, ["a", "b"])], "questions[1]"),
        ("x", [choice("x" * 2**22, ["a", "b"])], "questions"),
    ],
)
def test_an_invalid_request_names_its_field(client, text, questions, param):
    with pytest.raises(BadRequestError) as failure:
        decide(client, text, *questions)
    assert failure.value.param == param


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(NotFoundError):
        client.decisions.create(model="none", input="x", questions=[choice("Which?", ["a", "b"])])


async def test_a_client_that_leaves_frees_the_worker(daemon):
    questions = [choice(f"Question {number}?", ["a", "b", "c", "d"]) for number in range(100)]
    daemon.admin("POST", "/v0/load", {"model": TINY})
    (worker,) = daemon.admin("GET", "/v0/workers")[1]
    # While the worker is stopped, only the client's leaving can end the request.
    with suspended(worker["pid"]):
        async with AsyncOpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
            task = asyncio.create_task(client.decisions.create(model=TINY, input="x", questions=questions))
            await asyncio.to_thread(wait_until, lambda: in_flight(daemon) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_until, lambda: in_flight(daemon) == 0)


def in_flight(daemon):
    return sum(worker["in_flight"] for worker in daemon.admin("GET", "/v0/workers")[1])
