"""`launch` and `env`: client programs get the settings that they need, and no file is changed."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from osaurusctl import client_programs
from osaurusctl.client_programs import NO_KEY, PROGRAMS, Connection
from osaurusd.wire.keys import Protection

MODEL = "llama-3.2-3b-instruct"
URL = "http://127.0.0.1:8080"
CONNECTION = Connection(URL, "sk-1", "it's \\ m", 32_768)
PRINT = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Fake programs that print their arguments and environment, first in PATH."""
    for name in ("claude", "codex", "opencode", "aider", "llm", "other"):
        (tmp_path / name).write_text(PRINT)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("OSAURUS_API_KEY", raising=False)


@pytest.fixture
def served(daemon, programs, fake):
    daemon.default_model = MODEL
    daemon.details = {MODEL: fake.details(MODEL)}
    daemon.status_override = {"endpoints": [URL]}
    return daemon


def launch(*arguments):
    """Run `osaurusctl launch` as a process; return the arguments and the environment of the program."""
    command = [sys.executable, "-m", "osaurusctl", "launch", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_aider_is_launched(served):
    arguments, environment = launch("aider", "--", "--message", "x")
    assert arguments == ["--model", f"openai/{MODEL}", "--message", "x"]
    assert (environment["OPENAI_API_BASE"], environment["OPENAI_API_KEY"]) == (f"{URL}/v1", NO_KEY)
    assert served.bodies("/v0/load") == [{"model": MODEL}]


def test_any_other_program_is_launched(served):
    arguments, environment = launch("--model", MODEL, "--", "other", "-v", "file")
    assert arguments == ["-v", "file"]
    assert (environment["OPENAI_BASE_URL"], environment["OLLAMA_HOST"]) == (f"{URL}/v1", URL)


def test_llm_chats_unless_it_gets_a_command(served):
    assert launch("llm")[0] == ["chat", "-m", f"ollama/{MODEL}"]
    assert launch("llm", "models")[0] == ["models"]


def test_codex_gets_its_settings_as_arguments():
    arguments = PROGRAMS["codex"].arguments(CONNECTION)
    assert arguments[-2:] == ["-m", CONNECTION.model]
    assert f'model_providers.osaurusd.base_url="{URL}/v1"' in arguments
    assert 'model_providers.osaurusd.wire_api="responses"' in arguments


def test_claude_uses_the_model_for_everything():
    environment = PROGRAMS["claude"].environment(CONNECTION)
    assert environment["ANTHROPIC_BASE_URL"] == URL
    assert (environment["ANTHROPIC_API_KEY"], environment["ANTHROPIC_AUTH_TOKEN"]) == ("", "sk-1")
    assert {value for name, value in environment.items() if name.endswith("_MODEL")} == {CONNECTION.model}
    assert environment["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "32768"


def test_opencode_gets_a_configuration():
    config = json.loads(PROGRAMS["opencode"].environment(CONNECTION)["OPENCODE_CONFIG_CONTENT"])
    provider = config["provider"]["osaurusd"]
    assert provider["options"] == {"baseURL": f"{URL}/v1", "apiKey": "sk-1"}
    assert provider["models"][CONNECTION.model]["limit"]["context"] == 32_768


def test_program_that_is_not_installed_is_named(served, invoke, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    result = invoke("launch", "codex")
    assert (result.exit_code, "npm install -g @openai/codex" in result.output) == (1, True)
    assert invoke("launch", "nothing").exit_code == 1
    assert invoke("launch", "openai").exit_code == 2


def test_context_that_is_too_short_is_an_error(served, invoke, fake):
    served.details = {MODEL: fake.details(MODEL, {"context_length": 4096})}
    result = invoke("launch", "aider")
    assert result.exit_code == 1
    assert "needs at least 8000" in result.output
    assert launch("aider", "--any-context")


def test_api_that_the_daemon_lacks_is_an_error(served, invoke):
    served.fail("/v1/messages", "not_found", "the path does not exist", status=404)
    result = invoke("launch", "claude")
    assert result.exit_code == 1
    assert "/v1/messages" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_variables_are_quoted_for_the_shell(shell):
    lines = client_programs.format_variables({"A": "it's \\ $x \n", "B": ""}, shell)
    assert [shlex.split(line) for line in lines] == [["export", "A=it's \\ $x \n"], ["export", "B="]]


def test_variables_are_quoted_for_fish():
    assert client_programs.format_variables({"A": "it's \\ $x"}, "fish") == [r"set -gx A 'it\'s \\ $x'"]


def test_env_prints_variables(served, invoke):
    result = invoke("env", "openai", "--shell", "bash")
    assert result.exit_code == 0
    assert f"export OPENAI_BASE_URL={URL}/v1" in result.output.splitlines()
    assert json.loads(invoke("env", "ollama", "--json").output) == {"OLLAMA_HOST": URL}
    assert "set -gx OLLAMA_HOST" in invoke("env", "ollama", "--shell", "fish").output


def test_required_api_key_comes_from_the_environment(served, invoke, monkeypatch):
    served.status_override |= {"protection": Protection(key_required=True)}
    assert "OSAURUS_API_KEY" in invoke("env", "openai").output
    monkeypatch.setenv("OSAURUS_API_KEY", "sk-osaurus-1")
    assert "sk-osaurus-1" in invoke("env", "openai").output


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://0.0.0.0:1", "http://127.0.0.1:1"),
        ("https://[::]:1", "https://[::1]:1"),
        ("http://[fe80::1]:1", "http://[fe80::1]:1"),
    ],
)
def test_programs_connect_to_an_address_of_the_daemon(endpoint, url, fake):
    class Status:
        endpoints = (endpoint,)

    assert client_programs.base_url(Status()) == url
