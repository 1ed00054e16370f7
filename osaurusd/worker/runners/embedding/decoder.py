"""Decoders that embed text: the networks of mlx_lm without their output layer.

Qwen3-Embedding attends to earlier tokens only, as in generation. EmbeddingGemma attends in both directions.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from osaurusd.worker.runners.embedding.inputs import Batch
from osaurusd.worker.runners.embedding.modernbert import window_mask


@dataclass
class ModelArgs:
    """The arguments of mlx_lm's network, and how it attends.

    Attributes:
        window: distance of tokens in layers with a sliding window, if the network attends in both directions.
    """

    model_type: str
    network: Any
    hidden_size: int
    window: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ModelArgs":
        module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
        args = module.ModelArgs.from_dict({**config, **_rope_settings(config)})
        # As in transformers: half of the window on each side.
        window = args.sliding_window // 2 if config.get("use_bidirectional_attention") else None
        return cls(config["model_type"], args, config["hidden_size"], window)


class Model(nn.Module):
    """A decoder, which returns a vector for each token."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        module = importlib.import_module(f"mlx_lm.models.{args.model_type}")
        self.model = module.Model(args.network).model
        self._args = args

    def __call__(self, batch: Batch) -> mx.array:
        if self._args.window is None:
            # Padding follows the text, so that no token of the text attends to it.
            return self.model(batch.tokens)
        everywhere = batch.attention_mask
        nearby = window_mask(batch.tokens.shape[1], self._args.window)
        nearby = nearby if everywhere is None else nearby & everywhere
        hidden = self.model.embed_tokens(batch.tokens)
        hidden = hidden * mx.array(self._args.hidden_size**0.5).astype(hidden.dtype)
        for layer in self.model.layers:
            hidden = layer(hidden, nearby if layer.self_attn.is_sliding else everywhere)
        return self.model.norm(hidden)

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Add the prefix that weights without an output layer lack, and drop the output layer."""
        prefixed = {f"model.{name.removeprefix('model.')}": weight for name, weight in weights.items()}
        return {name: weight for name, weight in prefixed.items() if not name.startswith("model.lm_head.")}


def _rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that newer files have in `rope_parameters`, under the keys that mlx_lm reads."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return {}
    if "rope_theta" in parameters:
        return {"rope_theta": parameters["rope_theta"]}
    keys = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
    return {key: parameters[kind]["rope_theta"] for kind, key in keys.items() if kind in parameters}
