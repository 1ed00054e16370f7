"""Create the models of the soak: `python -m tests.soak.make_models MODELS_DIRECTORY`.

This is a process of its own so that the soak itself does not import MLX.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from osaurusd.imports.worker.importer import import_model
from tests import starter_model
from tests.models import make_tiny
from tests.soak.models import CONTEXT_TOKENS, GENERATION_CONFIG, MODELS

# Layers with small random weights hardly change their input. With larger ones, the output depends on the whole prompt.
WEIGHT_SCALE = 3.0

LLAMA4_TEXT: dict[str, Any] = {
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
    # Chunked attention: the caches cannot be merged.
    "llama4": {"model_type": "llama4", "text_config": LLAMA4_TEXT},
}


def make_models(directory: Path) -> None:
    """Create each model in a subdirectory with its name."""
    with tempfile.TemporaryDirectory() as starter:
        import_model(starter_model.fetch(), Path(starter), lambda *_: None)
        for seed, name in enumerate(MODELS):
            folder = directory / name
            make_tiny(folder, Path(starter), seed=seed, max_position_embeddings=CONTEXT_TOKENS, **CONFIGS[name])
            scale_weights(folder / "model.safetensors")
            (folder / "generation_config.json").write_text(GENERATION_CONFIG)


def scale_weights(file: Path) -> None:
    weights: dict[str, Any] = dict(mx.load(str(file)))
    scaled = {
        name: weight * WEIGHT_SCALE if weight.ndim >= 2 and "embed" not in name else weight
        for name, weight in weights.items()
    }
    mx.eval(scaled)
    mx.save_safetensors(str(file), scaled, {"format": "mlx"})


if __name__ == "__main__":
    make_models(Path(sys.argv[1]))
