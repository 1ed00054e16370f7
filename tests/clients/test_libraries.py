"""Libraries in Python and from npm, unmodified: each gets a tool call, runs the tool, and gets the answer."""

import shutil
from pathlib import Path

import pytest

from osaurusctl.client_programs import PROGRAMS, Connection
from tests import daemons, embedding_model
from tests.clients.conftest import ANSWER, MODEL, QUESTION, Clients

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


def test_openai_agents(clients: Clients) -> None:
    output = clients.run_python("agents_sdk.py")
    assert output == {"texts": [ANSWER] * 4, "cities": ["Paris"] * 4}


def test_langchain_anthropic(clients: Clients) -> None:
    output = clients.run_python("langchain_anthropic_client.py")
    assert (output["texts"], output["cities"]) == ([ANSWER] * 2, ["Paris"] * 2)
    assert min(output["usage"]) > 0


def test_llm_ollama(clients: Clients) -> None:
    llm = str(clients.programs / "llm")
    settings = {"OLLAMA_HOST": clients.daemon.url, "LLM_USER_PATH": str(clients.home / "llm")}
    assert MODEL in clients.run(llm, "ollama", "models", **settings)
    _, *options = PROGRAMS["llm"].arguments(Connection(clients.daemon.url, "", MODEL))
    for streams in ([], ["--no-stream"]):
        assert clients.run(llm, "prompt", *options, *streams, QUESTION, **settings).strip() == ANSWER


def test_openai_of_npm(clients: Clients) -> None:
    output = clients.run_node("libraries", "openai.mjs")
    assert output == {"texts": [ANSWER] * 3, "cities": ["Paris"] * 3, "models": [MODEL]}


def test_anthropic_of_npm(clients: Clients) -> None:
    output = clients.run_node("libraries", "anthropic.mjs")
    assert (output["texts"], output["cities"]) == ([ANSWER] * 2, ["Paris"] * 2)
    assert output["tokens"] > 0


def test_ollama_of_npm(clients: Clients) -> None:
    output = clients.run_node("libraries", "ollama.mjs")
    assert output == {"texts": [ANSWER] * 2, "cities": ["Paris"] * 2, "models": [MODEL]}


def test_ai_sdk_with_its_providers(clients: Clients) -> None:
    output = clients.run_node("libraries", "ai_sdk.mjs")
    assert list(output) == ["chat", "responses", "anthropic", "ollama"]
    for provider in output.values():
        assert (provider["texts"], provider["cities"]) == ([ANSWER] * 2, ["Paris"] * 2)
    assert len({provider["usage"] for provider in output.values()}) == 1


def test_ollama_ai_provider(clients: Clients) -> None:
    assert clients.run_node("ai-4", "ollama_provider.mjs") == {"texts": [ANSWER] * 2, "cities": ["Paris"]}


def test_ai_sdk_embeds(programs: Path, home: Path, minilm_folder: Path) -> None:
    shutil.copytree(minilm_folder, home / "models" / embedding_model.NAME)
    with daemons.running(home) as daemon:
        clients = Clients(daemon, programs, home)
        output = clients.run_node("libraries", "ai_sdk_embeddings.mjs", MODEL=embedding_model.NAME)

    assert list(output) == ["openai", "ollama"]
    for provider in output.values():
        assert provider["length"] == 384
        assert provider["same"] == pytest.approx(1, abs=1e-5)
        assert provider["related"] > 0.4 > provider["unrelated"]
