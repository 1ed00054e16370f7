"""Every endpoint converts bodies with many values in a thread, and counts only what the model sees."""

import json
import threading

import pytest

from osaurusd import conversion
from osaurusd.config import Config
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.protocols.anthropic import endpoints as anthropic
from osaurusd.protocols.ollama import generation as ollama
from osaurusd.protocols.openai import chat, completions, decisions, embeddings, rerank
from osaurusd.protocols.openai.responses import conversations, creation
from osaurusd.protocols.openai.responses import endpoints as responses
from tests.osaurusd.http.serve import serving

from .helpers import MODEL, REPO, client_groups, running_backend

CHAT, MESSAGES, RESPONSES, OLLAMA = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"
TEXT = {"type": "text", "text": "x"}
INPUT_TEXT = {"type": "input_text", "text": "x"}


def user(content="x"):
    return {"role": "user", "content": content}


def function(index):
    return {"type": "function", "function": {"name": f"f{index}"}}


# The scripted model makes no decisions.
DECISION = {"model": "unknown", "input": [user()], "questions": [{"type": "predicate", "instructions": "x"}]}


class Served:
    """A server with the routes of all protocols."""

    def __init__(self, server):
        self._server = server

    async def post(self, path, **fields):
        body = json.dumps({"model": MODEL, "stream": False, **fields}).encode()
        return await self._server.request("POST", path, "Content-Type: application/json", body=body)


@pytest.fixture
async def served(tmp_path):
    config = Config()
    async with running_backend(tmp_path, REPO) as backend:
        app = create_app(client_groups(backend), lambda: config, admission=Admission(lambda: config))
        async with serving(app, config) as server:
            yield Served(server)


@pytest.mark.parametrize(
    ("module", "name", "path", "fields"),
    [
        (chat, "build_request", CHAT, {"messages": [user()]}),
        (chat, "field_paths", CHAT, {"messages": [user()]}),
        (completions, "build_requests", "/v1/completions", {"prompt": [1, 2]}),
        (anthropic, "build_message", MESSAGES, {"messages": [user()], "max_tokens": 1}),
        (anthropic, "build_prompt", f"{MESSAGES}/count_tokens", {"messages": [user()]}),
        (ollama, "build_chat", OLLAMA, {"messages": [user()]}),
        (ollama, "build_generation", "/api/generate", {"prompt": "x"}),
        (creation, "parse_request", RESPONSES, {"input": [user()]}),
        (creation, "ResponseRun", RESPONSES, {"input": [user()]}),
        (responses, "summary_request", f"{RESPONSES}/compact", {"input": [user()]}),
        (conversations, "_complete_items", "/v1/conversations", {"items": [user()]}),
        (conversations, "encode_items", "/v1/conversations", {"items": [user()]}),
        (decisions, "parse_input", "/v1/decisions", DECISION),
        (decisions, "parse_questions", "/v1/decisions", DECISION),
        (embeddings, "parse_inputs", "/v1/embeddings", {"input": ["x"]}),
        (rerank, "_texts", "/v1/rerank", {"query": "x", "documents": ["x"]}),
    ],
)
async def test_body_with_many_values_is_converted_in_a_thread(served, monkeypatch, module, name, path, fields):
    convert, threads = getattr(module, name), []

    def record(*args, **kwargs):
        threads.append(threading.get_ident())
        return convert(*args, **kwargs)

    monkeypatch.setattr(module, name, record)
    monkeypatch.setattr(conversion, "_MIN_THREAD_BYTES", 0)
    monkeypatch.setattr(conversion, "_MANY_VALUES", 0)
    await served.post(path, **fields)
    assert threads
    assert threading.get_ident() not in threads


NAMED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f1"}}]}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [user([TEXT, *[{"type": "thinking", "thinking": "x"}] * 2048])]}),
        (CHAT, {"messages": [user()], "tools": [*map(function, range(129))], "tool_choice": "none"}),
        (
            CHAT,
            {
                "messages": [user()],
                "tools": [*map(function, range(129))],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": NAMED},
            },
        ),
        (MESSAGES, {"messages": [user([TEXT, *[{"type": "text", "text": ""}] * 2048])]}),
        (MESSAGES, {"messages": [{"role": "assistant", "content": [*[{"type": "thinking"}] * 2049, TEXT]}]}),
        (
            MESSAGES,
            {
                "messages": [user()],
                "tools": [{"name": f"f{index}"} for index in range(129)],
                "tool_choice": {"type": "none"},
            },
        ),
        (RESPONSES, {"input": "x", "tools": [{"type": "web_search"}] * 129}),
        (
            RESPONSES,
            {
                "input": "x",
                "tools": [{"type": "function", "name": f"f{index}"} for index in range(129)],
                "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f1"}]},
            },
        ),
        (RESPONSES, {"input": [{"role": "system", "content": [INPUT_TEXT] * 2049}, user()]}),
    ],
)
async def test_what_the_model_does_not_see_is_not_counted(served, path, fields):
    response = await served.post(path, max_tokens=1, **fields)
    assert response.status == 200, response.json


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/conversations", {"items": [user()] * 4097}, "items"),
        ("/v1/embeddings", {"input": ["x", 1]}, "input[1]"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/rerank", {"query": "x", "documents": []}, "documents"),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "model"),
        ("/v1/rerank", {"query": "x", "documents": ["x"] * 2049}, "model"),
    ],
)
async def test_bad_input_is_reported_before_an_unknown_model_and_a_limit_after_it(served, path, fields, param):
    response = await served.post(path, **{"model": "nonsense", **fields})
    assert response.json["error"]["param"] == param
