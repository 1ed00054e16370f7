import pytest

from osaurusd.worker.engine import engine
from osaurusd.worker.engine.chunk_sizer import EFFICIENT_TOKENS, MAX_TOKENS
from osaurusd.worker.engine.device import CPU
from tests.osaurusd.worker.engine.harness import UNLIMITED, WITH_CACHE, CheckedEngine, Decoder, SharedProbe


@pytest.fixture
def share_probes(monkeypatch):
    """Engines of one network share its measurement, which takes longer than most requests.

    Not for tests of failures, after which an engine measures its network again.
    """
    monkeypatch.setattr(engine, "Probe", SharedProbe)


@pytest.fixture
def checked_engine(network):
    return lambda kind="llama", limits=WITH_CACHE: CheckedEngine(network(kind), limits)


@pytest.fixture
def set_chunks(monkeypatch):
    """Fixes the prefill budgets of an engine while other sequences decode, and while none does."""

    def set_chunks(engine, shared=EFFICIENT_TOKENS, idle=MAX_TOKENS):
        sizes = {True: shared, False: idle}
        monkeypatch.setattr(engine.chunk_sizer, "tokens", lambda *, shared: sizes[shared])

    return set_chunks


@pytest.fixture
def make_decoder(network):
    return lambda kind="llama", padding_per_pass=UNLIMITED, device=CPU: Decoder(network(kind), padding_per_pass, device)
