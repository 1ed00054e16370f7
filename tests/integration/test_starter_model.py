"""The quality of answers: a real daemon and worker, and a small trained model."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tokenizers import Tokenizer

from tests import daemons
from tests.conftest import SMOLLM

CAPITAL: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
FRANCE = "The capital of France is"

# Two strings, an integer and an optional field, as users write them: without `additionalProperties`.
SMALL_SCHEMAS = {
    "Extract the person: Ada Lovelace, 36, lives in London.": (("name", "city"), "age", "email"),
    "Tell me about Italy.": (("name", "capital"), "population", "language"),
    "Describe a book.": (("title", "author"), "year", "genre"),
    "Add a calendar event: lunch with Tom on Friday for 60 minutes.": (("title", "day"), "minutes", "note"),
}


@pytest.fixture(scope="module")
def smollm(module_home: Path, smollm_folder: Path) -> Iterator[OpenAI]:
    """The official client, connected to a daemon with SmolLM2-135M."""
    (module_home / "models").mkdir()
    shutil.copytree(smollm_folder, module_home / "models" / SMOLLM)
    with daemons.running(module_home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client


def test_question_is_answered_and_usage_agrees_with_the_tokenizer(smollm: OpenAI, smollm_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm_folder / "tokenizer.json"))
    reply = smollm.chat.completions.create(model=SMOLLM, messages=CAPITAL, temperature=0, max_tokens=100)

    content = reply.choices[0].message.content or ""
    assert "Paris" in content
    assert "stop" == reply.choices[0].finish_reason
    prompt = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in CAPITAL)
    assert reply.usage is not None
    assert len(tokenizer.encode(f"{prompt}<|im_start|>assistant\n").ids) == reply.usage.prompt_tokens
    assert len(tokenizer.encode(content).ids) == reply.usage.completion_tokens


@pytest.mark.long
def test_default_sampling_answers_a_simple_question_with_at_least_nine_of_ten_seeds(smollm: OpenAI) -> None:
    def generate(seed: int) -> str:
        reply = smollm.chat.completions.create(model=SMOLLM, messages=CAPITAL[1:], seed=seed, max_tokens=8)
        return reply.choices[0].message.content or ""

    with ThreadPoolExecutor(5) as executor:
        answers = list(executor.map(generate, range(10)))

    assert sum("Paris" in answer for answer in answers) >= 9


@pytest.mark.long
def test_small_schemas_are_complete_within_100_tokens_in_19_of_20_tries(smollm: OpenAI) -> None:
    def generate(question: str, seed: int) -> str:
        strings, integer, optional = SMALL_SCHEMAS[question]
        texts = {name: {"type": "string"} for name in (*strings, optional)}
        schema = {
            "type": "object",
            "properties": {**texts, integer: {"type": "integer"}},
            "required": [*strings, integer],
        }
        reply = smollm.chat.completions.create(
            model=SMOLLM,
            messages=[{"role": "user", "content": question}],
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            temperature=0.7,
            seed=seed,
            max_tokens=100,
        )
        return reply.choices[0].finish_reason

    with ThreadPoolExecutor(20) as executor:
        reasons = list(executor.map(generate, [*SMALL_SCHEMAS] * 5, range(20)))

    assert reasons.count("stop") >= 19


def test_text_is_continued_and_its_logprobs_equal_those_of_the_same_prompt(smollm: OpenAI) -> None:
    generated = smollm.completions.create(model=SMOLLM, prompt=FRANCE, max_tokens=6, temperature=0, logprobs=0)
    text = generated.choices[0].text
    echoed = smollm.completions.create(model=SMOLLM, prompt=FRANCE + text, echo=True, logprobs=0, max_tokens=0)

    assert text.startswith(" Paris")
    logprobs = generated.choices[0].logprobs.token_logprobs
    assert logprobs == pytest.approx(echoed.choices[0].logprobs.token_logprobs[-len(logprobs) :], abs=1e-3)


def test_a_decision_is_right_and_its_probabilities_are_in_order(smollm: OpenAI) -> None:
    capitals = ["Berlin", "Paris", "Rome"]
    question = {
        "type": "choice",
        "name": "capital",
        "instructions": "What is the answer?",
        "choices": [{"value": value} for value in capitals],
    }
    decision = smollm.decisions.create(model=SMOLLM, input="What is the capital of France?", questions=[question])
    (answer,) = decision.answers
    assert ("choice", "capital", "Paris") == (answer.type, answer.name, answer.choice)
    probabilities = {each.value: each.probability for each in answer.probabilities}
    assert capitals == [*probabilities]
    assert answer.confidence == max(probabilities.values()) > 0.8
    assert sum(probabilities.values()) == pytest.approx(1)
