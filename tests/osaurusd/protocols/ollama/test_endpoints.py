"""Ollama's endpoints over HTTP, from the socket to a worker and back."""

import pytest

from osaurusd.wire.errors import ErrorBody, ErrorCode
from osaurusd.wire.pulls import PullStage, PullState
from tests.osaurusd.pool.helpers import until

from ..helpers import MODEL, REPO

TOOLS = [{"type": "function", "function": {"name": "weather"}}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def messages(text):
    return [{"role": "user", "content": text}]


async def test_chat_is_streamed_by_default(ollama):
    *pieces, last = await ollama.stream("/api/chat", messages=messages("to be"))
    assert [piece["message"] for piece in pieces] == [
        {"role": "assistant", "content": "to "},
        {"role": "assistant", "content": "be "},
    ]
    assert {piece["done"] for piece in pieces} == {False}
    assert {piece["model"] for piece in pieces} == {MODEL}
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert (last["prompt_eval_count"], last["eval_count"]) == (1, 2)
    assert all(isinstance(last[name], int) for name in DURATIONS)
    assert last["total_duration"] > 0


async def test_chat_is_answered_at_once_on_request(ollama):
    response = await ollama.post("/api/chat", messages=messages("to be"), stream=False, options={"num_predict": 1})
    assert response.status == 200
    assert response.json["message"] == {"role": "assistant", "content": "to "}
    assert (response.json["done"], response.json["done_reason"]) == (True, "length")


async def test_generation_is_text(ollama):
    lines = await ollama.stream("/api/generate", prompt="to be")
    assert "".join(line["response"] for line in lines) == "to be "
    response = await ollama.post("/api/generate", prompt="to be", stream=False)
    assert response.json["response"] == "to be "


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_call_has_an_object_as_arguments(ollama, stream):
    lines = await ollama.stream("/api/chat", messages=messages("call"), tools=TOOLS) if stream else []
    if not stream:
        lines = [(await ollama.post("/api/chat", messages=messages("call"), tools=TOOLS, stream=False)).json]
    (call,) = [call for line in lines for call in line["message"].get("tool_calls", [])]
    assert call["function"] == {"name": "weather", "arguments": {"a": 1}, "index": 0}
    assert call["id"]
    assert lines[-1]["done_reason"] == "stop"


async def test_thinking_is_separate(ollama):
    lines = await ollama.stream("/api/chat", messages=messages("think"))
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Hm. Yes."
    assert "".join(line["message"]["content"] for line in lines) == "thought"
    response = await ollama.post("/api/generate", prompt="think", stream=False)
    assert (response.json["thinking"], response.json["response"]) == ("Hm. Yes.", "thought")


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs_are_reported(ollama, stream):
    fields = {"messages": messages("to be"), "logprobs": True, "top_logprobs": 2, "stream": stream}
    lines = await ollama.stream("/api/chat", **fields) if stream else [(await ollama.post("/api/chat", **fields)).json]
    tokens = [token for line in lines for token in line.get("logprobs", [])]
    assert [(token["token"], token["logprob"], len(token["top_logprobs"])) for token in tokens] == [
        ("to ", -0.5, 2),
        ("be ", -0.5, 2),
    ]


async def test_error_before_the_stream_has_a_status(ollama):
    response = await ollama.post("/api/generate", prompt="x", options={"mirostat": 1})
    assert response.status == 400
    assert response.json == {"error": "`options.mirostat` is not supported; omit it"}


async def test_error_in_the_middle_of_a_stream_is_its_last_line(ollama):
    *_, last = await ollama.stream("/api/chat", messages=messages("fail"))
    assert last == {"error": "`messages`: too long"}


async def test_tag_of_the_name_is_ignored(ollama):
    response = await ollama.post("/api/chat", model=f"{MODEL}:latest", messages=messages("x"), stream=False)
    assert (response.status, response.json["model"]) == (200, f"{MODEL}:latest")


async def test_unknown_model_is_a_404(ollama):
    for path in ("/api/chat", "/api/generate", "/api/show"):
        response = await ollama.post(path, model="none")
        assert (response.status, list(response.json)) == (404, ["error"])
        assert "none" in response.json["error"]


async def test_request_without_input_loads_and_unloads(ollama):
    for path, fields in (("/api/chat", {"messages": []}), ("/api/generate", {})):
        response = await ollama.post(path, **fields)
        assert (response.status, response.json["done"], response.json["done_reason"]) == (200, True, "load")
        assert len(ollama.workers) == 1
        response = await ollama.post(path, keep_alive=0, **fields)
        assert response.json["done_reason"] == "unload"
        await until(lambda: not ollama.workers)


async def test_keep_alive_of_zero_unloads_after_the_request(ollama):
    await ollama.stream("/api/chat", messages=messages("x"), keep_alive=0)
    await until(lambda: not ollama.workers)


@pytest.mark.parametrize(("keep_alive", "seconds"), [(-1, None), ("-1m", None), ("5m", 300), (1800, 1800)])
async def test_keep_alive_is_no_pin(ollama, keep_alive, seconds):
    await ollama.stream("/api/chat", messages=messages("x"), keep_alive=keep_alive)
    (worker,) = ollama.workers
    assert worker.pinned is False
    assert worker.idle_left_seconds is None if seconds is None else worker.idle_left_seconds <= seconds
    await ollama.pool.unload(worker.key)


async def test_models_are_listed(ollama):
    (model,) = (await ollama.request("GET", "/api/tags")).json["models"]
    assert (model["name"], model["model"]) == (MODEL, MODEL)
    assert model["size"] > 0
    assert len(model["digest"]) == 64
    assert model["modified_at"].endswith("Z")
    assert set(model["details"]) >= {"format", "family", "families", "parameter_size", "quantization_level"}


async def test_running_models_are_listed(ollama):
    assert (await ollama.request("GET", "/api/ps")).json == {"models": []}
    await ollama.post("/api/generate", keep_alive="5m")
    (model,) = (await ollama.request("GET", "/api/ps")).json["models"]
    assert (model["name"], model["size"] > 0, model["expires_at"].endswith("Z")) == (MODEL, True, True)


@pytest.mark.parametrize("field", ["model", "name"])
async def test_model_is_shown(ollama, field):
    shown = (await ollama.request("POST", "/api/show", **{field: MODEL})).json
    assert shown["capabilities"] == ["completion"]
    family = shown["model_info"]["general.architecture"]
    assert shown["details"]["family"] == family
    assert {"license", "modelfile", "parameters", "template", "modified_at"} <= set(shown)


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
async def test_models_that_generate_text_do_not_embed(ollama, path):
    response = await ollama.post(path, input="x", prompt="x")
    assert response.status == 400
    assert "generates text; use it with `/v1/chat/completions`" in response.json["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/api/tags", "/api/version"])
async def test_clients_can_check_that_the_server_runs(ollama, method, path):
    assert (await ollama.request(method, path)).status == 200


async def test_unknown_path_has_an_error_of_this_api(ollama):
    response = await ollama.request("GET", "/api/nothing")
    assert (response.status, list(response.json)) == (404, ["error"])


MANAGEMENT = [
    ("POST", "/api/pull", {"model": "org/new"}),
    ("DELETE", "/api/delete", {"model": MODEL}),
    ("POST", "/api/copy", {"source": MODEL, "destination": "copy"}),
    ("POST", "/api/create", {"model": "copy", "from": MODEL}),
]


@pytest.mark.parametrize(("method", "path", "fields"), MANAGEMENT)
async def test_management_is_refused_unless_allowed(ollama, method, path, fields):
    ollama.may_manage = False
    response = await ollama.request(method, path, **fields)
    assert response.status == 403
    assert "`ollama.allow_management`" in response.json["error"]
    assert ollama.removed == []


async def test_pull_reports_its_progress(ollama):
    ollama.pulls.will(PullState.RUNNING, stage=PullStage.RESOLVING)
    ollama.pulls.will(PullState.RUNNING, stage=PullStage.DOWNLOADING, done=1, total=2, commit="c" * 40)
    ollama.pulls.will(PullState.DONE)
    lines = await ollama.stream("/api/pull", model="org/new")
    assert [line["status"] for line in lines] == [
        "pulling manifest",
        "pulling manifest",
        "pulling cccccccccccc",
        "success",
    ]
    assert (lines[2]["completed"], lines[2]["total"], lines[2]["digest"]) == (1, 2, "c" * 40)
    assert (await ollama.post("/api/pull", stream=False)).json == {"status": "success"}


async def test_failure_of_a_pull_is_reported(ollama):
    error = ErrorBody(message="no space", type="server_error", param=None, code=ErrorCode.DISK_FULL)
    ollama.pulls.will(PullState.FAILED, error=error)
    *_, last = await ollama.stream("/api/pull", model="org/new")
    assert "no space" in last["error"]
    assert (await ollama.post("/api/pull", stream=False)).status == 502


async def test_model_is_deleted(ollama):
    assert (await ollama.request("DELETE", "/api/delete", model=f"{MODEL}:latest")).status == 200
    assert ollama.removed == [REPO]


@pytest.mark.parametrize(("method", "path", "fields"), MANAGEMENT[2:])
async def test_copy_is_an_alias(ollama, method, path, fields):
    assert (await ollama.request(method, path, **fields)).status == 200
    names = [model["name"] for model in (await ollama.request("GET", "/api/tags")).json["models"]]
    assert names == [MODEL, "copy"]
    assert (await ollama.request("DELETE", "/api/delete", model="copy")).status == 200
    assert (len((await ollama.request("GET", "/api/tags")).json["models"]), ollama.removed) == (1, [])


async def test_alias_is_found_in_any_form_of_its_name(ollama):
    composed, decomposed = "\u00e9clair", "E\u0301CLAIR"
    assert (await ollama.request("POST", "/api/copy", source=MODEL, destination=decomposed)).status == 200
    names = [model["name"] for model in (await ollama.request("GET", "/api/tags")).json["models"]]
    assert names == [MODEL, composed]
    assert (await ollama.request("DELETE", "/api/delete", model=decomposed)).status == 200
    assert ollama.removed == []


@pytest.mark.parametrize("field", ["system", "template", "parameters", "files", "quantize"])
async def test_model_cannot_be_changed_by_create(ollama, field):
    response = await ollama.request("POST", "/api/create", model="new", **{"from": MODEL, field: "x"})
    assert response.status == 400
    assert f"`{field}`" in response.json["error"]


async def test_disconnect_cancels_the_generation(ollama):
    body = b'{"model":"%b","messages":[{"role":"user","content":"stall"}]}' % MODEL.encode()
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with ollama.server.connection() as (_, writer):
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: any(worker.in_flight for worker in ollama.workers))
    await until(lambda: not any(worker.in_flight for worker in ollama.workers))
