"""The program and the curl commands of the guide, with a real daemon and worker and a tiny random model."""

import json
import subprocess

from openai import OpenAI

from tests.conftest import TINY
from tests.daemons import Daemon


def test_models_are_listed(client: OpenAI) -> None:
    models = client.models.list()

    assert [TINY] == [model.id for model in models.data]
    assert ["osaurus"] == [model.owned_by for model in models.data]


def test_chat_is_completed(client: OpenAI) -> None:
    response = client.chat.completions.create(
        model=TINY,
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        temperature=0,
        max_tokens=20,
    )

    assert response.choices[0].message.content
    assert response.choices[0].finish_reason == "length"
    assert response.model == TINY


def test_stream_yields_text_in_pieces(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=TINY, messages=[{"role": "user", "content": "Write a haiku about coding"}], stream=True, max_tokens=40
    )

    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content is not None]

    assert len(pieces) > 5
    assert "".join(pieces).strip()


def curl(daemon: Daemon, path: str, body: object = None) -> str:
    arguments = ["curl", "-sS", "--max-time", "120", daemon.url + path]
    if body is not None:
        arguments += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def test_curl_lists_models(tiny_daemon: Daemon) -> None:
    listing = json.loads(curl(tiny_daemon, "/models"))

    assert listing["object"] == "list"
    assert {"id", "object", "created", "owned_by"} <= set(listing["data"][0])


def test_curl_completes_a_chat(tiny_daemon: Daemon) -> None:
    body = {
        "model": TINY,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello, how are you?"},
        ],
        "temperature": 0.7,
        "max_tokens": 15,
    }
    reply = json.loads(curl(tiny_daemon, "/chat/completions", body))

    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["choices"][0]["message"]["role"] == "assistant"
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_curl_streams_a_chat(tiny_daemon: Daemon) -> None:
    body = {
        "model": TINY,
        "messages": [{"role": "user", "content": "Tell me a short story"}],
        "stream": True,
        "temperature": 0.8,
        "max_tokens": 10,
    }
    lines = curl(tiny_daemon, "/chat/completions", body).split("\n\n")

    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert {"chat.completion.chunk"} == {chunk["object"] for chunk in chunks}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    assert len({chunk["id"] for chunk in chunks}) == 1
