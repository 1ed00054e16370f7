"""Ollama's API with its official client and with LangChain, against a real daemon and worker with a tiny model."""

import gc
import importlib
from collections.abc import Iterator

import ollama
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.conftest import TINY
from tests.daemons import Daemon, UnixConnection

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 24}


def weather(city: str) -> str:
    """Return the weather.

    Args:
        city: the name of a city
    """
    return f"sunny in {city}"


class Answer(BaseModel, extra="forbid"):
    is_city: bool


@pytest.fixture
def native(tiny_daemon: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(tiny_daemon.url) as client:
        yield client


def test_chat_has_the_same_text_as_with_openai(native: ollama.Client, client: OpenAI) -> None:
    expected = client.chat.completions.create(model=TINY, messages=CAPITAL, temperature=0, max_tokens=24)
    whole = native.chat(TINY, CAPITAL, options=GREEDY)
    pieces = list(native.chat(f"{TINY}:latest", CAPITAL, options=GREEDY, stream=True, keep_alive=-1))

    assert whole.message.content
    assert expected.choices[0].message.content == whole.message.content
    assert whole.message.content == "".join(piece.message.content for piece in pieces)
    assert expected.usage.prompt_tokens == whole.prompt_eval_count
    assert expected.usage.completion_tokens == whole.eval_count
    assert [False] * (len(pieces) - 1) + [True] == [piece.done for piece in pieces]
    for response in (whole, pieces[-1]):
        assert "length" == response.done_reason
        assert 0 < response.eval_duration < response.total_duration
        assert response.prompt_eval_duration + response.load_duration <= response.total_duration


def test_generate_and_its_limit(native: ollama.Client) -> None:
    response = native.generate(TINY, "Count from one to fifty in words.", options={**GREEDY, "num_predict": 4})
    assert ("length", 4) == (response.done_reason, response.eval_count)
    raw = native.generate(TINY, "one two three four", raw=True, options=GREEDY, logprobs=True, top_logprobs=2)
    assert raw.eval_count == len(raw.logprobs)
    assert {2} == {len(token.top_logprobs) for token in raw.logprobs}


def test_format_is_guaranteed(native: ollama.Client) -> None:
    response = native.chat(TINY, CAPITAL, format=Answer.model_json_schema(), options={"temperature": 0})
    Answer.model_validate_json(response.message.content)


def test_tools_and_their_results_are_accepted(native: ollama.Client) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": weather("Paris"), "tool_name": "weather"},
    ]
    assert native.chat(TINY, messages, tools=[weather], options=GREEDY).message.content


def test_models_are_listed_and_shown(native: ollama.Client) -> None:
    assert TINY in [model.model for model in native.list().models]
    shown = native.show(TINY)
    assert "completion" in shown.capabilities
    assert 8192 == shown.modelinfo["llama.context_length"]
    native.generate(TINY)
    (running,) = native.ps().models
    assert (TINY, 8192) == (running.model, running.context_length)
    assert running.expires_at is not None


def test_errors_have_status_and_text(native: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not exist") as missing:
        native.chat("none", CAPITAL)
    assert 404 == missing.value.status_code
    with pytest.raises(ollama.ResponseError, match="generates text") as embed:
        native.embed(TINY, "text")
    assert 400 == embed.value.status_code
    with pytest.raises(ollama.ResponseError, match="allow_management") as refused:
        native.delete(TINY)
    assert 403 == refused.value.status_code
    with pytest.raises(ollama.ResponseError, match="context"):
        next(iter(native.chat(TINY, [{"role": "user", "content": "word " * 9000}], stream=True)))


def test_models_are_managed_over_the_unix_socket(tiny_daemon: Daemon) -> None:
    for method, path, body in (
        ("POST", "/api/copy", f'{{"source": "{TINY}", "destination": "copied"}}'),
        ("DELETE", "/api/delete", '{"model": "copied"}'),
    ):
        connection = UnixConnection(tiny_daemon.socket)
        headers = {"Host": "localhost", "Content-Type": "application/json"}
        connection.request(method, path, body=body, headers=headers)
        assert 200 == connection.getresponse().status
        connection.close()


@pytest.fixture
def _collected() -> Iterator[None]:
    """Collect LangChain's clients, which never close their connections, before the next test starts."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_collected")
def test_langchain_chats_streams_and_structures(tiny_daemon: Daemon) -> None:
    langchain_ollama = importlib.import_module("langchain_ollama")  # takes a second in each process that collects tests
    chat = langchain_ollama.ChatOllama(
        model=TINY, base_url=tiny_daemon.url, temperature=0, num_predict=24, num_ctx=4096
    )
    answer = chat.invoke(CAPITAL[0]["content"]).content
    chunks = list(chat.stream(CAPITAL[0]["content"]))
    assert answer == "".join(chunk.content for chunk in chunks) != ""
    assert [chunk for chunk in chunks if chunk.usage_metadata and chunk.usage_metadata["output_tokens"]]
    model = langchain_ollama.ChatOllama(model=TINY, base_url=tiny_daemon.url, temperature=0)
    structured = model.with_structured_output(Answer, method="json_schema")
    assert isinstance(structured.invoke("Is Paris a city?"), Answer)
    assert chat.bind_tools([weather]).invoke("Hello").content is not None
    assert langchain_ollama.OllamaLLM(model=TINY, base_url=tiny_daemon.url, num_predict=5).invoke("Hello")
    with pytest.raises(ollama.ResponseError, match="generates text"):
        langchain_ollama.OllamaEmbeddings(model=TINY, base_url=tiny_daemon.url).embed_query("x")
