import contextlib
import sys
import threading

import pytest
from mlx_lm.utils import load_tokenizer

from osaurusd.worker.engine.mlx_thread import MlxThread
from tests.models import make_tiny
from tests.osaurusd.worker.networks import make_network


@pytest.fixture(scope="session")
def network():
    """Makes a network of some kind, the same one always."""
    made = {}

    def network(kind="llama"):
        if kind not in made:
            made[kind] = make_network(kind)
        return made[kind]

    return network


@pytest.fixture(scope="session")
def tiny_folder(smollm_folder, tmp_path_factory):
    """A tiny random model with SmolLM2's tokenizer and chat template."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), smollm_folder, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tokenizer(tiny_folder):
    """SmolLM2's tokenizer, as a worker loads it."""
    return load_tokenizer(tiny_folder, {"trust_remote_code": False})


class _Thread(threading.Thread):
    """A thread that may end by SystemExit without anybody calling that a failure."""

    def run(self):
        with contextlib.suppress(SystemExit):
            super().run()


@pytest.fixture
def mlx_thread(monkeypatch):
    """The class MlxThread, whose threads end with the test: one that runs on when the process exits aborts it."""
    made = []

    class Ending(MlxThread):
        def start(self):
            with monkeypatch.context() as patched:
                patched.setattr(threading, "Thread", _Thread)
                before = set(threading.enumerate())
                super().start()
            (thread,) = [new for new in threading.enumerate() if new not in before and new.name == "mlx"]
            made.append((self, thread))

    yield Ending
    for mlx, thread in made:
        mlx.post(sys.exit)
        thread.join(30)
        assert not thread.is_alive()
