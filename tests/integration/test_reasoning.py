"""A model that thinks before it answers: its thoughts and its answer never mix. The real daemon and worker."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests import daemons

# SmolLM2 never says these; renamed, they make it a model with markers for its thoughts.
RENAMED = {"<repo_name>": "<think>", "<reponame>": "</think>"}
# The model has not learnt to think and would rather say nothing.
NEVER_END = {"0": -100, "2": -100}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def thinker(smollm_folder: Path) -> Iterator[tuple[OpenAI, int]]:
    """A client of a daemon with a model that always begins with a thought, and the token that ends one."""
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    folder = home / "models" / "thinker"
    shutil.copytree(smollm_folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for old, new in RENAMED.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (end,) = [token["id"] for token in tokens if token["content"] == "</think>"]
    with daemons.running(home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client, end
    shutil.rmtree(home, ignore_errors=True)


def ask(client: OpenAI, **fields):
    return client.chat.completions.create(
        **{
            "model": "thinker",
            "messages": QUESTION,
            "temperature": 0,
            "max_tokens": 8,
            "logit_bias": NEVER_END,
            **fields,
        }
    )


def stop_thinking_at_once(end: int) -> dict[str, object]:
    """What makes the token that ends a thought by far the likeliest, but only once."""
    return {"logit_bias": {**NEVER_END, str(end): 100}, "extra_body": {"repetition_penalty": 10}}


def test_a_thought_without_an_end_is_no_content(thinker) -> None:
    client, _ = thinker
    reply = ask(client)

    message = reply.choices[0].message
    assert message.reasoning_content
    assert not message.content
    assert "length" == reply.choices[0].finish_reason
    assert 8 == reply.usage.completion_tokens_details.reasoning_tokens


def test_what_comes_after_the_thought_is_content(thinker) -> None:
    client, end = thinker
    reply = ask(client, **stop_thinking_at_once(end))

    message = reply.choices[0].message
    assert message.content
    assert "think" not in message.content
    assert getattr(message, "reasoning_content", None) is None
    assert 1 == reply.usage.completion_tokens_details.reasoning_tokens


def test_a_streamed_thought_comes_under_its_own_name(thinker) -> None:
    client, _ = thinker
    deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True)]

    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert ask(client).choices[0].message.reasoning_content == thought
    assert "" == "".join(delta.content or "" for delta in deltas)


def test_a_form_is_kept_after_the_thought_only(thinker) -> None:
    client, end = thinker
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}

    thinking = ask(client, response_format=form)
    answered = ask(client, response_format=form, logit_bias={str(end): 100})

    assert thinking.choices[0].message.reasoning_content
    assert not thinking.choices[0].message.content
    assert answered.choices[0].message.content.strip() in ('"yes"', '"no"')
    assert "stop" == answered.choices[0].finish_reason
