"""Makes the models of a soak: `python -m tests.soak.folders MODELS`.

In a process of its own, so that the one that asks does not import MLX.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from osaurusd.imports.worker.run import import_model
from tests import starter_model
from tests.models import make_tiny
from tests.soak.models import CONTEXT_TOKENS, GREEDY, MODELS

# Untrained layers hardly change what passes through them; with larger weights the whole prompt decides.
_GAIN = 3.0

_TEXT: dict[str, Any] = {
    "model_type": "llama4_text",
    "vocab_size": 49152,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "attention_chunk_size": 256,
    "head_dim": 16,
    "interleave_moe_layer_step": 1,
    "intermediate_size_mlp": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "num_experts_per_tok": 1,
    "num_local_experts": 2,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "use_qk_norm": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16, "rope_theta": 10000.0},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16},
    # Attention in chunks: sequences cannot be decoded together.
    "llama4": {"model_type": "llama4", "text_config": _TEXT},
}


def make(folder: Path) -> None:
    """Make all models, each in a folder of its name below `folder`."""
    with tempfile.TemporaryDirectory() as starter:
        import_model(starter_model.fetch(), Path(starter), lambda *_: None)
        for seed, name in enumerate(MODELS):
            make_tiny(folder / name, Path(starter), seed=seed, max_position_embeddings=CONTEXT_TOKENS, **CONFIGS[name])
            _make_louder(folder / name / "model.safetensors")
            (folder / name / "generation_config.json").write_text(GREEDY)


def _make_louder(file: Path) -> None:
    weights: dict[str, Any] = dict(mx.load(str(file)))
    louder = {
        name: weight * _GAIN if weight.ndim >= 2 and "embed" not in name else weight for name, weight in weights.items()
    }
    mx.eval(louder)
    mx.save_safetensors(str(file), louder, {"format": "mlx"})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
