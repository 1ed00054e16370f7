import contextlib
import copy
import functools
import sys
import threading

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from osaurusd.worker.engine.mlx_thread import MlxThread
from tests.models import make_tiny
from tests.osaurusd.worker.networks import make_network


@pytest.fixture(scope="session")
def network():
    """Returns the network of an architecture, which is created once."""
    cached = functools.cache(make_network)
    return lambda kind="llama": cached(kind)


@pytest.fixture(scope="session")
def tiny_folder(tiny_tokenizer, tmp_path_factory):
    """A tiny random model with SmolLM2's tokenizer and chat template."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), tiny_tokenizer, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tokenizer(tiny_folder):
    """SmolLM2's tokenizer, as a worker loads it."""
    return load_tokenizer(tiny_folder, {"trust_remote_code": False})


@pytest.fixture
def with_template(tokenizer):
    """Create a tokenizer with another chat template, or without one."""

    def with_template(template):
        inner = copy.copy(tokenizer._tokenizer)
        inner.chat_template = template
        return TokenizerWrapper(inner, type(tokenizer._detokenizer))

    return with_template


class _QuietThread(threading.Thread):
    """A thread that may end by SystemExit without pytest reporting it."""

    def run(self):
        with contextlib.suppress(SystemExit):
            super().run()


@pytest.fixture
def mlx_thread(monkeypatch):
    """The class MlxThread, with threads that end after the test: one that outlives the interpreter aborts it."""
    started = []

    class TestMlxThread(MlxThread):
        def start(self):
            with monkeypatch.context() as patched:
                patched.setattr(threading, "Thread", _QuietThread)
                before = set(threading.enumerate())
                super().start()
            (thread,) = [new for new in threading.enumerate() if new not in before and new.name == "mlx"]
            started.append((self, thread))

    yield TestMlxThread
    for mlx, thread in started:
        mlx.post(sys.exit)
        thread.join(60)
        assert not thread.is_alive()
