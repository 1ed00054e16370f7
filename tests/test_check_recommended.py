"""`make check-recommended` with a fake hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fakes import hub

CODE = """
import sys
from osaurusctl.recommended import RecommendedModel, Task
from tests import check_recommended

models = [
    RecommendedModel(task=Task.CHAT, repo=repo, architecture="llama", bytes=int(size), description="")
    for repo, size in (argument.split("=") for argument in sys.argv[1:])
]
sys.exit(check_recommended.main(models))
"""


def run(url: str, folder: Path, *models: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    env = {**kept, "HF_ENDPOINT": url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CODE, *models]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def publish(server: hub.Hub, repo: str, architecture: str = "llama", **files: bytes) -> None:
    config = json.dumps({"model_type": architecture}).encode()
    server.publish(
        repo, {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": bytes(2_000_000)} | files
    )


def test_wrong_entries_are_named(tmp_path: Path) -> None:
    with hub.running(tmp_path / "hub") as server:
        publish(server, "org/right")
        publish(server, "org/larger")
        publish(server, "org/other", "qwen2")
        server.publish("org/incomplete", {"config.json": b"{}"})
        correct = run(server.url, tmp_path / "home", "org/right=2000000")
        models = ["org/right=2000000", "org/other=2000000", "org/incomplete=1", "org/gone=1", "org/larger=900000000"]
        wrong = run(server.url, tmp_path / "home", *models)

    assert 0 == correct.returncode, correct.stderr
    assert "is correct" in correct.stdout
    assert 1 == wrong.returncode, wrong.stderr
    lines = dict(line.split(maxsplit=1) for line in wrong.stdout.splitlines()[1:6])
    assert "ok" == lines["org/right"]
    assert "the architecture is qwen2, not llama" == lines["org/other"]
    assert "model*.safetensors" in lines["org/incomplete"]
    assert "org/gone" in lines["org/gone"]
    assert "the weights have 2.0 MB, not 900 MB" == lines["org/larger"]
    assert "4 of 5 entries" in wrong.stdout
