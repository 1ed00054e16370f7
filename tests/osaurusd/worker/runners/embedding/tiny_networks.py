"""Tiny networks of every family with weights that depend on their names only, so that they are equal everywhere.

`references.json` has the configs, the shapes of the weights, and what transformers computes. To renew it, run
`python tests/osaurusd/worker/runners/embedding/tiny_networks.py` in an environment with torch and transformers.
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCES = Path(__file__).with_name("references.json")

SEQUENCES = [[5, 17, 42, 8, 99], list(range(3, 26)), [7 * number % 90 + 4 for number in range(40)]]

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
_MODERN = {**_SIZES, "local_attention": 8, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
_RANKS = {"num_labels": 1}
_GEMMA = {
    **_SIZES,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 12,
    "sliding_window_pattern": 3,
    "use_bidirectional_attention": True,
    "tie_word_embeddings": True,
}
_QWEN = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "bert", _SIZES),
    "xlm-roberta": ("XLMRobertaModel", "xlm-roberta", {**_SIZES, "type_vocab_size": 1, "pad_token_id": 1}),
    "modernbert": ("ModernBertModel", "modernbert", _MODERN),
    "qwen3": ("Qwen3Model", "qwen3", _QWEN),
    "gemma3_text": ("Gemma3TextModel", "gemma3_text", _GEMMA),
    "bert ranks": ("BertForSequenceClassification", "bert", {**_SIZES, **_RANKS}),
    "xlm-roberta ranks": (
        "XLMRobertaForSequenceClassification",
        "xlm-roberta",
        {**_SIZES, **_RANKS, "type_vocab_size": 1, "pad_token_id": 1},
    ),
    "modernbert ranks": ("ModernBertForSequenceClassification", "modernbert", {**_MODERN, **_RANKS}),
    "modernbert ranks by mean": (
        "ModernBertForSequenceClassification",
        "modernbert",
        {**_MODERN, **_RANKS, "classifier_pooling": "mean"},
    ),
}
"""By name: the class and the config of transformers."""


def weight(name: str, shape: list[int]) -> np.ndarray:
    """Return the weights of the parameter with this name."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    is_norm = len(shape) == 1 and name.endswith("weight")
    return (noise * 0.1 + (1.0 if is_norm else 0.0) if len(shape) == 1 else noise * 0.2).astype(np.float32)


def compute(class_name: str, model_type: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Compute the reference with transformers: the last hidden states, or the logits of a classifier."""
    import torch  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  in the other environment only
    import transformers  # noqa: PLC0415

    config = transformers.AutoConfig.for_model(model_type, **settings, attn_implementation="eager")
    model = getattr(transformers, class_name)(config).eval()
    shapes = {name: list(each.shape) for name, each in model.state_dict().items() if each.is_floating_point()}
    model.load_state_dict({name: torch.tensor(weight(name, shape)) for name, shape in shapes.items()}, strict=False)
    outputs = []
    with torch.no_grad():
        for tokens in SEQUENCES:
            result = model(torch.tensor([tokens]))
            values = result.logits[0] if "logits" in result else result.last_hidden_state[0]
            outputs.append(np.round(values.numpy().astype(np.float64), 6).tolist())
    # Only the first and the last token of each sequence: the others follow from the same weights.
    if "logits" not in result:
        outputs = [[rows[0], rows[-1]] for rows in outputs]
    stored = {**json.loads(config.to_json_string(use_diff=False)), "model_type": model_type}
    keys = [
        *settings,
        "model_type",
        "rope_parameters",
        "layer_types",
        "id2label",
        "hidden_act",
        "layer_norm_eps",
        "rms_norm_eps",
    ]
    return {
        "config": {key: stored[key] for key in keys if key in stored},
        "shapes": shapes,
        "outputs": outputs,
    }


if __name__ == "__main__":
    references = {name: compute(*family) for name, family in FAMILIES.items()}
    REFERENCES.write_text(json.dumps(references) + "\n")
    sys.exit(0)
