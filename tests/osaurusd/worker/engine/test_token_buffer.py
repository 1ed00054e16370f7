"""Forward passes that are built before their tokens are known."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.worker.engine.token_buffer import TokenBuffer, can_precede_tokens
from tests.osaurusd.worker.networks import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_passes_of_common_networks_can_precede_their_tokens(network, kind):
    assert can_precede_tokens(network(kind))


@pytest.mark.parametrize("look", [lambda tokens: tokens.max().item(), lambda tokens: int(tokens[0, 0])])
def test_a_network_that_looks_at_its_tokens_is_noticed(network, look):
    class LookingNetwork:
        layers = network("llama").layers

        def __call__(self, tokens, cache):
            return network("llama")(tokens, cache=cache) * (1 + look(tokens))

    assert not can_precede_tokens(LookingNetwork())


def test_a_pass_uses_the_tokens_that_were_set_after_it_was_built(network):
    buffer = TokenBuffer(2)
    logits = network("llama")(buffer.tokens[:, None], cache=make_prompt_cache(network("llama")))

    buffer.fill(mx.array([3, 5], mx.uint32))

    expected = network("llama")(mx.array([[3], [5]]), cache=make_prompt_cache(network("llama")))
    assert mx.allclose(expected, logits, atol=1e-5).item()
    assert [3, 5] == buffer.tokens.tolist()
