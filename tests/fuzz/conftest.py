"""A real daemon with a tiny model, whose processes must survive all inputs."""

import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.fuzz.target import Target
from tests.models import running_tiny

# Inputs are the same in every run, except in long tests.
hypothesis.settings.register_profile(
    "fuzz",
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=True,
    phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
)
hypothesis.settings.load_profile("fuzz")

# Short outputs: these tests are about the input.
CONFIG = """\
default_model = "tiny"
[defaults]
max_tokens = 4
[residency]
keep_alive_seconds = -1
"""

VALID_REQUEST = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def target(module_home: Path, tiny_tokenizer: Path) -> Iterator[Target]:
    """A daemon that must have the same processes and no errors in its log after the tests of a module."""
    with running_tiny(module_home, tiny_tokenizer, CONFIG, max_position_embeddings=256) as daemon:
        target = Target(daemon)
        before = target.processes()
        yield target
        target.close()
        assert before == target.processes()
        assert 200 == target.post("/v1/chat/completions", json.dumps(VALID_REQUEST).encode()).status
        target.close()
        assert [] == [line for line in daemon.log if line.get("level") == "error" or line["event"] == "plain text"]
