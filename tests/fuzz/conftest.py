"""A real daemon with a tiny model, whose processes must survive all inputs."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import daemons
from tests.fuzz.target import Target
from tests.models import make_tiny

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
def target(smollm_folder: Path) -> Iterator[Target]:
    """A daemon that must have the same processes and no errors in its log after the tests of a module."""
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    make_tiny(home / "models" / "tiny", smollm_folder, max_position_embeddings=256)
    (home / "config.toml").write_text(CONFIG)
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/load", {"model": "tiny"})
        target = Target(daemon)
        before = target.processes()
        yield target
        target.close()
        assert before == target.processes()
        assert 200 == target.post("/v1/chat/completions", json.dumps(VALID_REQUEST).encode()).status
        target.close()
        assert [] == [line for line in daemon.log if line.get("level") == "error" or line["event"] == "plain text"]
    shutil.rmtree(home, ignore_errors=True)
