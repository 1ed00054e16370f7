"""Codex and Claude Code, started by `osaurusctl launch`: a turn in which the agent reads a file with one of its tools.

They use nothing but the daemon: all other addresses lead nowhere, and their home directory is empty.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons
from tests.clients.conftest import Clients
from tests.clients.install import install_packages
from tests.scripted_model import make_scripted, tool_call

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

QUESTION = "What does secret.txt say?"
CODEX_OPTIONS = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
ANSWER = "The file mentions a swordfish."


@pytest.fixture(scope="module")
def agents(programs: Path, module_home: Path, tiny_tokenizer: Path) -> Iterator[Clients]:
    """The agents, and a daemon with a model for each: it reads a file, and then answers."""
    install_packages("agents", programs)
    client = module_home / "client"
    secret = client / "work" / "secret.txt"
    secret.parent.mkdir(parents=True)
    secret.write_text("The password is swordfish.\n")
    calls = {
        "codex": tool_call("exec_command", cmd="cat secret.txt"),
        "claude": tool_call("Read", file_path=str(secret)),
    }
    for name, call in calls.items():
        make_scripted(module_home / "models" / name, tiny_tokenizer, [call, ANSWER])
    (module_home / "config.toml").write_text("[log]\ncontent = true\n")
    with daemons.running(module_home) as daemon:
        yield Clients(daemon, programs, client)


def executables(agents: Clients) -> Path:
    return install_packages("agents", agents.programs) / "node_modules" / ".bin"


def launch(agents: Clients, program: str, *arguments: str) -> str:
    """Run a program with `osaurusctl launch`, and return what it prints."""
    variables = daemons.environment(agents.daemon.home)
    environment = agents.environment()
    return agents.run(
        *(sys.executable, "-m", "osaurusctl", "launch", program, "--model", program, "--", *arguments),
        cwd=agents.home / "work",
        PATH=f"{executables(agents)}:{environment['PATH']}",
        PYTHONPATH=str(Path(__file__).parents[2]),
        **{name: variables[name] for name in ("OSAURUS_HOME", "HF_HUB_CACHE")},
    )


def results_of_tools(agents: Clients) -> list[str]:
    """Return the results of tools that the models have received."""
    prompts = [prompt for record in agents.daemon.log if record["event"] == "prompt" for prompt in record["prompts"]]
    messages = [message for prompt in prompts for message in prompt["messages"] if message["role"] == "tool"]
    return [str(message["content"]) for message in messages]


def test_codex_runs_a_command_and_answers(agents: Clients) -> None:
    output = launch(agents, "codex", "exec", *CODEX_OPTIONS, QUESTION)
    assert output.strip() == ANSWER
    assert any("The password is swordfish." in result for result in results_of_tools(agents))


def test_codex_accepts_the_daemon_as_ollama(agents: Clients) -> None:
    codex = str(executables(agents) / "codex")
    options = ["--oss", "--local-provider", "ollama", "--model", "codex"]
    url = f"{agents.daemon.url}/v1"
    output = agents.run(codex, "exec", *options, *CODEX_OPTIONS, QUESTION, CODEX_OSS_BASE_URL=url)
    assert output.strip() == ANSWER


def test_claude_code_reads_a_file_and_answers(agents: Clients) -> None:
    before = len(results_of_tools(agents))
    output = launch(agents, "claude", "--print", QUESTION)
    assert output.strip() == ANSWER
    assert any("The password is swordfish." in result for result in results_of_tools(agents)[before:])
