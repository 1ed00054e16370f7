"""Tokens that are an input of MLX's computations before their values are known.

MLX builds a forward pass before it computes anything. While the previous pass is being computed, there is time for
that, but the tokens that will be sampled from its logits are not known yet.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

# Relative error of logits that are the same up to rounding.
_TOLERANCE = 0.02

_PROBE_TOKEN = 7


class TokenBuffer:
    """A place for tokens.

    Args:
        count: how many tokens.
    """

    def __init__(self, count: int) -> None:
        self.tokens = mx.array(np.zeros(count, np.uint32))

    def fill(self, values: mx.array) -> None:
        """Set the values. No computation with them may have begun."""
        # Not a copy: what is written is in the array.
        np.array(self.tokens, copy=False)[:] = np.array(values, copy=False)


def can_precede_tokens(network: Any) -> bool:
    """Whether a pass of the network can be built before its tokens are known.

    Networks are programs: one that looks at its tokens while it is being built would see others.
    """
    buffer = TokenBuffer(1)
    late = _build_pass(network, buffer.tokens)
    buffer.fill(mx.array([_PROBE_TOKEN], mx.uint32))
    mx.eval(late)  # passes of a group of ranks must not be computed at the same time
    expected = _build_pass(network, mx.array([_PROBE_TOKEN], mx.uint32))
    return bool((mx.linalg.norm(late - expected) <= _TOLERANCE * mx.linalg.norm(expected)).item())


def _build_pass(network: Any, tokens: mx.array) -> mx.array:
    logits: mx.array = network(tokens[:, None], cache=make_prompt_cache(network))
    return logits[:, -1, :].astype(mx.float32)
