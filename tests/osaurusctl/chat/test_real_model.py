"""`osaurusctl run` on a terminal, with a real daemon and worker and a tiny random model."""

import json

import pytest

from tests.conftest import TINY
from tests.images import PNG


@pytest.fixture
def real_home(home, tiny_daemon, monkeypatch):
    """Let commands use the home of a daemon with a tiny model."""
    monkeypatch.setenv("OSAURUS_HOME", str(tiny_daemon.home))


def test_conversation_with_a_real_model(real_home, terminal):
    screen = terminal("run", TINY, "--verbose", "--max-tokens", "20")
    screen.expect(">>>", timeout=100)
    screen.type("What is the capital of France?\r")
    screen.expect("tok/s", timeout=100)
    screen.expect(">>>")
    screen.type("/show\r")
    screen.expect("of 8192 tokens")
    screen.type("/bye\r")
    assert screen.end()[1] == 0


def test_question_is_answered_by_the_only_model(real_home, ctl):
    result = ctl("run", "What is the capital of France?", "--max-tokens", "12", timeout=100)
    assert result.returncode == 0
    assert result.stdout.strip()


def test_answer_follows_a_schema(real_home, ctl, home):
    (home / "schema.json").write_text(
        '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
    )
    result = ctl("run", "Is the sky blue?", "--format", "schema.json", "--max-tokens", "200", timeout=100)
    assert json.loads(result.stdout).keys() == {"ok"}


def test_model_without_vision_is_named(real_home, ctl, home):
    (home / "cat.png").write_bytes(PNG)
    result = ctl("run", "What is this?", "--image", "cat.png", timeout=100)
    assert result.returncode == 1
    assert result.stderr.startswith(f'error: model "{TINY}" does not accept images: it is a text model\n')
