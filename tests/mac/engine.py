"""Checks of the engine: correctness on this machine's device, speed under launchd, and many loads."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import psutil

from tests import daemons
from tests.bench import models as bench_models
from tests.bench.servers import Server, mlx_lm_server, osaurusd
from tests.conftest import SMOLLM
from tests.mac.checks import Details, Run, expect
from tests.macs import REAL, ROOT, Mac

HEAD_256 = "head-dim-256"

# Speed of the service relative to the same daemon in a terminal.
MIN_RELATIVE_SPEED = 0.8

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def structured_output(run: Run) -> Details:
    """Answers follow the JSON schema, and required tool calls are made."""
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answers = []
    for seed in range(run.scale.repeats):
        message = _chat(run.mac, "Describe Ada, who is 36.", response_format=schema, seed=seed, temperature=1)
        jsonschema.validate(json.loads(message["content"]), PERSON)
        answers.append(message["content"])
    function = {"name": "save", "parameters": PERSON}
    tools: dict[str, Any] = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    call = _chat(run.mac, "Save Ada, who is 36.", temperature=0, **tools)["tool_calls"][0]["function"]
    jsonschema.validate(json.loads(call["arguments"]), PERSON)
    return {"answers": answers, "call": call, "worker": _worker(run.mac, SMOLLM)}


def greedy_output(run: Run) -> Details:
    """Greedy output is the same as that of mlx_lm."""
    prompt, tokens = "Tell me a story about a lighthouse.", run.scale.compared_tokens
    command = [sys.executable, "-m", "tests.mac.reference", str(run.mac.home / "models" / SMOLLM), prompt, str(tokens)]
    reference = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    expect(reference.returncode == 0, reference.stderr)
    expected = json.loads(reference.stdout)
    answer = _chat(run.mac, prompt, temperature=0, max_tokens=tokens)["content"]
    expect(answer == expected, f"different output: {answer!r}, mlx_lm: {expected!r}")
    return {"text": answer}


def memory_of_large_heads(run: Run) -> Details:
    """A long prompt for a model with 256 values per head stays within the model's memory limit."""
    _make_large_heads(run.mac)
    expect(run.mac.admin("POST", "/v0/load", {"model": HEAD_256})[0] == 200, "the model cannot be loaded")
    limit = _worker(run.mac, HEAD_256)["limit_bytes"]
    body, peak = _body(HEAD_256, " hello" * run.scale.long_prompt_tokens) | {"max_tokens": 2}, 0
    with ThreadPoolExecutor() as executor:
        answering = executor.submit(_post, run.mac, body)
        while not answering.done():
            peak = max(peak, _worker(run.mac, HEAD_256)["memory_bytes"])
            time.sleep(0.05)
    answer = answering.result()
    expect("usage" in answer, str(answer))
    expect(peak <= limit, f"{peak} bytes exceed the limit of {limit}")
    run.mac.admin("POST", "/v0/unload", {"model": HEAD_256})
    return {"usage": answer["usage"], "peak_bytes": peak, "limit_bytes": limit}


def speed_under_launchd(run: Run) -> Details:
    """The service is about as fast as the same daemon in a terminal. mlx_lm.server is measured for comparison."""
    # On a CPU, mlx_lm is too slow with quantized weights.
    name = SMOLLM if REAL else _make_large_heads(run.mac)
    expect(run.mac.admin("POST", "/v0/load", {"model": name})[0] == 200, "the model cannot be loaded")
    address = urlsplit(run.mac.status()["endpoints"][0])
    figures = {"service": _measure(Server(address.hostname or "", address.port or 0, name), run)}
    run.mac.admin("POST", "/v0/unload", {"model": name, "force": True})
    model = replace(bench_models.SMOLLM, name=name)
    home = run.mac.root / "terminal"
    shutil.copytree(run.mac.home / "models" / name, home / "models" / name)
    with daemons.running(home) as daemon, osaurusd(daemon, model) as server:
        figures["terminal"] = _measure(server, run)
    with mlx_lm_server(home, model) as server:
        figures["mlx_lm.server"] = _measure(server, run)
    shutil.rmtree(home)
    service, terminal = figures["service"], figures["terminal"]
    relative = {
        "first_token": terminal["first_token_seconds"] / service["first_token_seconds"],
        "decode": service["tokens_per_second"] / terminal["tokens_per_second"],
    }
    expect(min(relative.values()) >= MIN_RELATIVE_SPEED, f"slower than in a terminal: {relative}, {figures}")
    return {"figures": figures, "relative": relative}


def many_loads(run: Run) -> Details:
    """Models that are loaded and unloaded for minutes leak no process, and no worker crashes."""
    wire = run.mac.ctl("config", "set", "worker.wire", "never")
    run.mac.ctl("reload")
    own = psutil.Process(run.mac.pid)
    loads, deadline = 0, time.monotonic() + run.scale.churn_seconds
    while time.monotonic() < deadline:
        expect(run.mac.admin("POST", "/v0/load", {"model": SMOLLM})[0] == 200, "the model cannot be loaded")
        _chat(run.mac, "Hello", max_tokens=4)
        expect(run.mac.admin("POST", "/v0/unload", {"model": SMOLLM})[0] == 200, "the model cannot be unloaded")
        loads += 1
    workers = [worker for worker in run.mac.status()["workers"] if worker["last_exit"]]
    expect(not workers, f"failed workers: {workers}")
    return {"loads": loads, "wire": wire.stderr or "never", "children": len(own.children())}


def _make_large_heads(mac: Mac) -> str:
    """Create the model with 256 values per head, unless it exists; return its name."""
    folder = mac.home / "models" / HEAD_256
    if not folder.exists():
        command = [sys.executable, "-m", "tests.mac.large_heads", str(folder), str(folder.with_name(SMOLLM))]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        expect(made.returncode == 0, made.stderr)
    return HEAD_256


def _measure(server: Server, run: Run) -> dict[str, float]:
    """Measure a request with a long prompt, after a short one that is not measured."""
    prompt = " hello" * run.scale.prompt_tokens

    async def measure() -> dict[str, float]:
        await server.request([{"role": "user", "content": "Hello"}], 4)
        response = await server.request([{"role": "user", "content": prompt}], run.scale.output_tokens)
        return {"first_token_seconds": response.ttft, "tokens_per_second": response.rate}

    return asyncio.run(measure())


def _chat(mac: Mac, text: str, **fields: Any) -> dict[str, Any]:
    answer = _post(mac, _body(SMOLLM, text) | fields)
    expect("choices" in answer, str(answer))
    return dict(answer["choices"][0]["message"])


def _post(mac: Mac, body: dict[str, Any]) -> dict[str, Any]:
    with mac.post_chat(body) as connection:
        return dict(json.loads(connection.getresponse().read()))


def _body(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 100}


def _worker(mac: Mac, model: str) -> dict[str, Any]:
    return dict(next(worker for worker in mac.admin("GET", "/v0/workers")[1] if worker["model"] == model))
