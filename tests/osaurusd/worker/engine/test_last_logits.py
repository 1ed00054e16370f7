"""The logits after the last token, computed without those of the tokens before it."""

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.worker.engine.last_logits import LastLogits
from tests.osaurusd.worker.networks import KINDS, tokens


def expected_logits(network, prompt):
    return network(mx.array(prompt)[None], cache=make_prompt_cache(network))[:, -1, :]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_network(network, kind):
    prompt = tokens(20)
    last_logits = LastLogits(network(kind))
    cache = make_prompt_cache(network(kind))

    last_logits(mx.array(prompt[:12])[None], cache)
    actual = last_logits(mx.array(prompt[12:])[None], cache)

    assert mx.allclose(actual, expected_logits(network(kind), prompt), atol=1e-3).item()
    assert network(kind)(mx.array(prompt)[None], cache=make_prompt_cache(network(kind))).shape[1] == 20


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "lfm2"])
def test_output_layer_of_common_networks_is_applied_to_the_last_token_only(network, kind):
    assert LastLogits(network(kind)).skips_others


class MeanNetwork(Module):
    """A network whose output layer is applied to other tokens, too."""

    def __init__(self, network, mix):
        super().__init__()
        self.lm_head = network.lm_head
        self.layers = network.layers
        self.model = network.model
        self._mix = mix

    def __call__(self, inputs, cache):
        return self._mix(self.lm_head(self.model(inputs, cache=cache)))


@pytest.mark.parametrize(
    "mix",
    [
        lambda logits: mx.cumsum(logits, axis=1),
        lambda logits: logits[:, :3] + logits[:, 2:3],
        lambda logits: logits + mx.arange(logits.shape[1])[:, None],
    ],
)
def test_network_that_needs_all_logits_computes_them(network, mix):
    mixed = MeanNetwork(network("llama"), mix)
    prompt = tokens(8)

    actual = LastLogits(mixed)(mx.array(prompt)[None], make_prompt_cache(mixed))

    assert mx.allclose(actual, expected_logits(mixed, prompt), atol=1e-3).item()
    assert mixed.lm_head is network("llama").lm_head
