import pytest

from osaurusd.worker.engine.chunk_sizer import EFFICIENT_TOKENS, MAX_TOKENS
from osaurusd.worker.engine.engine import Engine, Limits
from tests.osaurusd.worker.networks import (
    PROMPT,
    RecordingNetwork,
    build_request,
    expected_logprobs,
    is_greedy,
    run,
    run_until,
    tokens_of,
    usage_of,
)

OUTPUT_TOKENS = 6
WITH_CACHE = Limits(prefix_cache_bytes=2**30)


class CheckedEngine:
    """An engine whose outputs are compared with those of the network without any cache.

    Args:
        network: an mlx_lm model.
        limits: of the engine.
    """

    def __init__(self, network, limits=WITH_CACHE):
        self.network = RecordingNetwork(network)
        self.engine = Engine(self.network, [], limits)
        self._requests = {}

    def build(self, prompt, max_tokens=OUTPUT_TOKENS, **fields):
        request = build_request(len(self._requests) + 1, prompt, max_tokens, logprobs=0, **fields)
        self._requests[request.id] = request
        return request

    def generate(self, prompt, max_tokens=OUTPUT_TOKENS, **fields):
        """Return the output for a prompt, and how many of its tokens were cached."""
        request = self.build(prompt, max_tokens, **fields)
        return self.check(run(self.engine, request), request.id)

    def check(self, frames, id_):
        """Check the output of a request; return it, and how many tokens of the prompt were cached."""
        request = self._requests[id_]
        output = tokens_of(frames, id_)
        assert len(output) == request.max_tokens
        assert is_greedy(self.network, request.prompt_tokens, output)
        logprobs = [score.logprob for score in request.choices[0].output.scores]
        assert expected_logprobs(self.network, request.prompt_tokens, output) == pytest.approx(logprobs, abs=1e-3)
        return output, usage_of(frames, id_).cached_tokens

    def count_tokens(self, work):
        """Return what `work` returns, and how many tokens the network has processed for it."""
        self.network.shapes.clear()
        result = work()
        return result, sum(rows * width for rows, width in self.network.shapes)

    def start_background(self, max_tokens=200):
        """Start a request with two choices, and return it once both decode."""
        request = self.build(PROMPT, max_tokens, n=2)
        self.engine.add(request)
        run_until(self.engine, request.id, 2)
        self.network.shapes.clear()
        return request


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
