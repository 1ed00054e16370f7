"""`make demo`, and a session of CLI commands, with the installed programs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import daemons
from tests.conftest import SMOLLM

SCRIPT = Path(__file__).parents[1] / "demo" / "demo.sh"
PROGRAMS = Path(sys.executable).parent

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(home: Path) -> Iterator[Run]:
    """Run programs on an empty home, and stop the daemon that they start."""
    environment = daemons.environment(home, OSAURUS_PORT="0", PATH=f"{PROGRAMS}:{os.environ['PATH']}")

    def run_in_home(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
        arguments = [str(argument) for argument in command]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200, **options)

    yield run_in_home
    run_in_home("osaurusctl", "down")


def test_the_demo_answers_a_question_and_suggests_next_steps(run: Run, smollm_gguf: Path) -> None:
    first = run("sh", SCRIPT, smollm_gguf)

    assert 0 == first.returncode, first.stderr
    assert "Paris" in first.stdout
    assert "curl http://localhost:" in first.stdout
    assert "from openai import OpenAI" in first.stdout
    assert "make demo-stop" in first.stdout

    again = run("sh", SCRIPT, smollm_gguf)
    assert 0 == again.returncode, again.stderr
    assert f"{SMOLLM} is already imported" in again.stdout

    stopped = run("sh", SCRIPT, "--stop")
    assert 0 == stopped.returncode
    assert 3 == run("osaurusctl", "status").returncode


@pytest.mark.long
def test_the_cli_imports_loads_runs_and_unloads_a_model(run: Run, smollm_gguf: Path) -> None:
    assert 3 == run("osaurusctl", "ls").returncode
    assert 0 == run("osaurusctl", "up").returncode
    assert 0 == run("osaurusctl", "import", smollm_gguf).returncode

    (model,) = json.loads(run("osaurusctl", "ls", "--json").stdout)
    assert (SMOLLM, None) == (model["name"], model.get("worker"))
    assert 0 == run("osaurusctl", "load", SMOLLM).returncode
    (worker,) = json.loads(run("osaurusctl", "--json", "ps").stdout)
    assert (SMOLLM, "ready", "cpu" if sys.platform == "linux" else worker["device"]) == (
        worker["model"],
        worker["state"],
        worker["device"],
    )
    piped = run("osaurusctl", "run", SMOLLM, "--temperature", "0", input="What is the capital of France?")
    assert "Paris" in piped.stdout
    reply = json.loads(run("osaurusctl", "run", SMOLLM, "Say hello.", "--max-tokens", "3", "--json").stdout)
    assert ("length", 3) == (reply["finish_reason"], reply["usage"]["completion_tokens"])

    assert 4 == run("osaurusctl", "load", "nonsense").returncode
    assert 0 == run("osaurusctl", "unload", "--all").returncode
    assert [] == json.loads(run("osaurusctl", "ps", "--json").stdout)
    assert 0 == run("osaurusctl", "down").returncode
