"""The logits after the last token of a prompt. The output layer of a network is not needed for the tokens before it.

It is a large part of a small model: a fifth of the weights of SmolLM2-135M, a quarter of those of Qwen3-0.6B.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.worker.engine.kv_cache import Cache

# Relative error of logits that are the same up to rounding.
_TOLERANCE = 0.02

_PROBE_TOKENS = 3


class _LastTokenHead(Module):
    """An output layer that is applied to the last token only."""

    def __init__(self, head: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.head = head

    def __call__(self, hidden: mx.array) -> mx.array:
        return self.head(hidden[:, -1:])  # type: ignore[no-any-return]


class _LastTokenEmbedding(Module):
    """An embedding that is also the output layer, as which it is applied to the last token only."""

    def __init__(self, embedding: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = embedding

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.embedding(tokens)  # type: ignore[no-any-return]

    def as_linear(self, hidden: mx.array) -> mx.array:
        return self.embedding.as_linear(hidden[:, -1:])  # type: ignore[no-any-return]


class LastLogits:
    """Computes logits after the last token.

    Networks are programs: the constructor checks whether this one computes the same logits with a replaced output
    layer. If not, all logits are computed.

    Args:
        network: an mlx_lm model.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._place = _find_output_layer(network)
        if self._place is not None and not self._is_correct():
            self._place = None

    @property
    def skips_others(self) -> bool:
        """Whether the output layer is applied to the last token only."""
        return self._place is not None

    def __call__(self, tokens: mx.array, cache: Cache, **inputs: mx.array) -> mx.array:
        """Return logits [rows, vocabulary] after `tokens` [rows, tokens], or after the embeddings in `inputs`."""
        with self._replaced_output_layer():
            logits: mx.array = self._network(tokens, cache=cache, **inputs)
        return logits[:, -1, :]

    @contextlib.contextmanager
    def _replaced_output_layer(self) -> Iterator[None]:
        if self._place is None:
            yield
            return
        owner, name, kind = self._place
        layer = getattr(owner, name)
        setattr(owner, name, kind(layer))
        try:
            yield
        finally:
            setattr(owner, name, layer)

    def _is_correct(self) -> bool:
        tokens = mx.arange(_PROBE_TOKENS)[None]
        expected = self._network(tokens, cache=make_prompt_cache(self._network))[:, -1, :].astype(mx.float32)
        mx.eval(expected)  # passes of a group of ranks must not be computed at the same time
        try:
            with self._replaced_output_layer():
                logits = self._network(tokens, cache=make_prompt_cache(self._network))
            error = mx.linalg.norm(logits[:, -1, :].astype(mx.float32) - expected)
            return bool(logits.shape[1] == 1 and (error <= _TOLERANCE * mx.linalg.norm(expected)).item())
        except Exception:  # noqa: BLE001  a network may use its output layer in any other way
            return False


def _find_output_layer(network: Any) -> tuple[Any, str, Callable[[Module], Module]] | None:
    """Return the module that has the output layer as an attribute, the attribute's name, and what to replace it by."""
    network = getattr(network, "language_model", network)
    if isinstance(getattr(network, "lm_head", None), Module):
        return network, "lm_head", _LastTokenHead
    model = getattr(network, "model", None)
    if hasattr(getattr(model, "embed_tokens", None), "as_linear"):
        return model, "embed_tokens", _LastTokenEmbedding
    return None
