"""Tiny EmbeddingGemma and Qwen3-Embedding models with the files and settings of the published ones.

`embedding_layouts.json` has what sentence-transformers computes with them. To renew it, run
`python -m tests.integration.embedding_layouts` in an environment with sentence-transformers.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from tests.osaurusd.worker.runners.embedding.tiny_networks import weight

REFERENCES = Path(__file__).with_suffix(".json")
TEXTS = ["What do pandas eat?", "Pandas eat bamboo.", "a"]
DIMENSIONS = 32

_SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]
_NETWORK = {
    "hidden_size": DIMENSIONS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "torch_dtype": "float32",
}
_GEMMA = {
    **_NETWORK,
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 12,
    "_sliding_window_pattern": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "use_bidirectional_attention": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_QWEN = {
    **_NETWORK,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
_POOLING = {
    "word_embedding_dimension": DIMENSIONS,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}
_GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
    "STS": "task: sentence similarity | query: ",
}
_QWEN_PROMPTS = {
    "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    "document": "",
}


def make_gemma(folder: Path) -> Path:
    """Write a model in the layout of google/embeddinggemma-300m: two dense layers after pooling, and prompts."""
    _write_network(folder, _GEMMA, ["pre_feedforward_layernorm", "post_feedforward_layernorm"])
    _write_tokenizer(folder, "<bos> $A <eos>")
    _write_modules(folder, "Pooling", "Dense", "Dense", "Normalize", pooling="pooling_mode_mean_tokens")
    for name, shape in (("2_Dense", [3 * DIMENSIONS, DIMENSIONS]), ("3_Dense", [DIMENSIONS, 3 * DIMENSIONS])):
        settings = {"in_features": shape[1], "out_features": shape[0], "bias": False}
        _write(folder / name / "config.json", settings | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file({"linear.weight": weight(name, shape)}, folder / name / "model.safetensors")
    _write_prompts(folder, _GEMMA_PROMPTS)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    (folder / "README.md").write_text("EmbeddingGemma supports Matryoshka Representation Learning (MRL).\n")
    return folder


def make_qwen(folder: Path) -> Path:
    """Write a model in the layout of Qwen/Qwen3-Embedding-0.6B: the vector of the last token."""
    _write_network(folder, _QWEN, [])
    _write_tokenizer(folder, "$A <eos>")
    _write_modules(folder, "Pooling", "Normalize", pooling="pooling_mode_lasttoken")
    _write_prompts(folder, _QWEN_PROMPTS)
    _write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 1, "max_new_tokens": 2048})
    (folder / "README.md").write_text("| Model | MRL Support |\n| --- | --- |\n| Qwen3-Embedding-0.6B | Yes |\n")
    return folder


MODELS = {"embeddinggemma-tiny": make_gemma, "qwen3-embedding-tiny": make_qwen}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def _write_network(folder: Path, config: dict[str, Any], more_norms: list[str]) -> None:
    _write(folder / "config.json", config)
    head, hidden, inner = config["head_dim"], config["hidden_size"], config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"embed_tokens.weight": [config["vocab_size"], hidden], "norm.weight": [hidden]}
    for number in range(config["num_hidden_layers"]):
        layer = f"layers.{number}"
        attention = {"q_proj": [queries, hidden], "k_proj": [keys, hidden], "v_proj": [keys, hidden]}
        attention |= {"o_proj": [hidden, queries], "q_norm": [head], "k_norm": [head]}
        mlp = {"gate_proj": [inner, hidden], "up_proj": [inner, hidden], "down_proj": [hidden, inner]}
        shapes |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{layer}.mlp.{name}.weight": shape for name, shape in mlp.items()}
        norms = ["input_layernorm", "post_attention_layernorm", *more_norms]
        shapes |= {f"{layer}.{name}.weight": [hidden] for name in norms}
    save_file({name: weight(name, shape) for name, shape in shapes.items()}, folder / "model.safetensors")


def _write_tokenizer(folder: Path, template: str) -> None:
    """Write a tokenizer with one token for each character."""
    tokens = [*_SPECIAL_TOKENS, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(_SPECIAL_TOKENS)
    specials = [(token, number) for number, token in enumerate(_SPECIAL_TOKENS)]
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    _write(folder / "tokenizer_config.json", settings | {"padding_side": "left", "model_max_length": 131072})


def _write_modules(folder: Path, *kinds: str, pooling: str) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, kind in enumerate(kinds, start=1):
        module = {"idx": number, "name": str(number), "path": f"{number}_{kind}"}
        modules.append({**module, "type": f"sentence_transformers.models.{kind}"})
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", _POOLING | {pooling: True})


def _write_prompts(folder: Path, prompts: dict[str, str]) -> None:
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", settings)


def compute(folder: Path) -> dict[str, Any]:
    """Compute the reference: the vectors of the texts without a prompt, and as queries."""
    import sentence_transformers  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  elsewhere only

    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    names = {"": None, "query": "query", "document": "document"}
    vectors = {key: model.encode(TEXTS, prompt_name=name) for key, name in names.items()}
    return {name: np.round(each.astype(np.float64), 7).tolist() for name, each in vectors.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        references = {name: compute(make(Path(temporary) / name)) for name, make in MODELS.items()}
    REFERENCES.write_text(json.dumps(references) + "\n")
