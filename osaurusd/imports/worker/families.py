"""The model families that can be imported from GGUF files: one declarative table."""

from collections.abc import Callable, Mapping

from osaurusd.imports.worker import rope
from osaurusd.imports.worker.facts import Facts, constant
from osaurusd.imports.worker.family import (
    LAYER_NORM,
    SANDWICH_NORM,
    Family,
    MakeTransform,
    Setting,
    Source,
    has,
    in_layers,
    number_of,
    size_of,
)
from osaurusd.imports.worker.transforms import absorb_keys, add, join_key_and_value, split_rotary_pairs, take_values
from osaurusd.wire.errors import as_json

_BIASES: dict[str, Setting] = {
    "attention_bias": lambda facts: any(facts.has(f"blk.0.attn_{part}.bias") for part in ("q", "k", "v", "output")),
    "mlp_bias": lambda facts: any(facts.has(f"blk.0.ffn_{part}.bias") for part in ("gate", "up", "down")),
}
_ROTARY_PAIRS: dict[str, MakeTransform] = {
    f"model.layers.{{}}.self_attn.{module}": lambda facts: split_rotary_pairs(facts.head_dim)
    for module in ("q_proj", "k_proj")
}
_LAYER_NORM_SETTINGS: dict[str, Setting | None] = {
    "rms_norm_eps": None,
    "norm_epsilon": number_of("attention.layer_norm_epsilon"),
    "layer_norm_eps": number_of("attention.layer_norm_epsilon"),
}
_EXPERTS: dict[str, Setting] = {
    "num_experts": size_of("expert_count"),
    "num_local_experts": size_of("expert_count"),
    "num_experts_per_tok": size_of("expert_used_count"),
}


def _minus_one(*modules: str) -> dict[str, MakeTransform]:
    """Gemma's norms multiply by one plus the weight; files contain the sum."""
    return {f"{module}.weight": lambda _: add(-1.0) for module in modules}


_SANDWICH_NORMS = [f"model.layers.{{}}.{module}" for module in SANDWICH_NORM]
_HEAD_NORMS = [f"model.layers.{{}}.self_attn.{module}" for module in ("q_norm", "k_norm")]


def _query_scale(facts: Facts, largest: int) -> float:
    """Return Gemma's `query_pre_attn_scalar`. Files do not contain it; only that of the largest model differs."""
    return facts.hidden / facts.heads if facts.layers == largest else facts.head_dim


def _window_pattern(facts: Facts) -> int:
    """Return n if every n-th layer of Gemma 3 has full attention. Ollama's files list the others as true."""
    key = facts.key("attention.sliding_window_pattern")
    local = facts.metadata.find_numbers(key) if facts.metadata.is_list(key) else None
    if local is None:
        return facts.size("attention.sliding_window_pattern", 6)
    pattern = local.index(0) + 1 if 0 in local else 0
    if pattern and local == [bool((layer + 1) % pattern) for layer in range(facts.layers)]:
        return pattern
    raise facts.metadata.failure(f"the layers with full attention in the metadata key {as_json(key)} are irregular")


def _layer_types(facts: Facts) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(facts.layers)]


def _deepseek_key_rows(facts: Facts) -> int:
    """Return the rows of each head's keys without the rotated part."""
    length = facts.find_size("attention.key_length_mla") or facts.size("attention.key_length")
    rows = length - facts.size("rope.dimension_count")
    if rows <= 0:
        raise facts.metadata.failure(
            f"heads of size {length} have only {facts.size('rope.dimension_count')} rotated rows"
        )
    return rows


def _deepseek_experts(facts: Facts) -> int | None:
    return facts.find_size("expert_count")


_DEEPSEEK: dict[str, Setting | None] = {
    "head_dim": None,
    "num_key_value_heads": lambda facts: facts.heads,
    "moe_intermediate_size": lambda facts: facts.find_size("expert_feed_forward_length"),
    "n_shared_experts": lambda facts: facts.find_size("expert_shared_count"),
    "n_routed_experts": _deepseek_experts,
    "num_experts_per_tok": lambda facts: facts.find_size("expert_used_count"),
    "routed_scaling_factor": number_of("expert_weights_scale", 1.0),
    "norm_topk_prob": lambda facts: facts.flag("expert_weights_norm"),
    "kv_lora_rank": size_of("attention.kv_lora_rank"),
    # Null, because mlx_lm's default is a number.
    "q_lora_rank": lambda facts: facts.find_size("attention.q_lora_rank"),
    "qk_rope_head_dim": size_of("rope.dimension_count"),
    "v_head_dim": lambda facts: facts.find_size("attention.value_length_mla") or facts.size("attention.value_length"),
    "qk_nope_head_dim": _deepseek_key_rows,
    "n_group": lambda facts: facts.size("expert_group_count", 1),
    "topk_group": lambda facts: facts.size("expert_group_used_count", 1),
    "first_k_dense_replace": lambda facts: facts.find_size("leading_dense_block_count") or 0,
}


def _deepseek_variant(facts: Facts) -> str:
    """Version 3 selects experts by a sigmoid, which llama.cpp numbers 2. Older files lack the key, but have a bias."""
    sigmoid = facts.metadata.find_integer(facts.key("expert_gating_func")) == 2
    biased = any(name.endswith(".exp_probs_b.bias") for name in facts.header.tensors)
    return "deepseek_v3" if sigmoid or biased else "deepseek_v2"


# Architectures with several families.
_VARIANTS: Mapping[str, Callable[[Facts], str]] = {
    "llama": lambda facts: "mixtral" if facts.experts else "llama",
    "deepseek2": _deepseek_variant,
}

# Ollama's own names, for files with other tensors and keys than those of llama.cpp.
_OLLAMA_ONLY = ("deepseekocr", "glm4moelite", "glmocr", "mllama", "nemotron_h_omni", "olmo3")

_ALL_ROPE = ("linear", "llama3", "yarn")
_SELF_ATTENTION = "model.layers.{}.self_attn"

FAMILIES: tuple[Family, ...] = (
    Family(
        "Llama, Mistral",
        "llama",
        "llama",
        settings={**_BIASES},
        transforms=_ROTARY_PAIRS,
        rope=_ALL_ROPE,
    ),
    Family("Mixtral", "llama", "mixtral", settings={**_EXPERTS}, transforms=_ROTARY_PAIRS),
    Family("Qwen 2 and 2.5", "qwen2", "qwen2", rope=_ALL_ROPE),
    Family(
        "Qwen 2 MoE",
        "qwen2moe",
        "qwen2_moe",
        settings={
            **_EXPERTS,
            "moe_intermediate_size": lambda facts: facts.tensor("blk.0.ffn_down_exps.weight").shape[-1],
            "shared_expert_intermediate_size": lambda facts: facts.tensor("blk.0.ffn_down_shexp.weight").shape[-1],
        },
        rope=("linear",),
    ),
    Family("Qwen 3", "qwen3", "qwen3", rope=_ALL_ROPE),
    Family(
        "Qwen 3 MoE",
        "qwen3moe",
        "qwen3_moe",
        settings={
            **_EXPERTS,
            "moe_intermediate_size": size_of("expert_feed_forward_length"),
            "decoder_sparse_step": constant(1),
            "mlp_only_layers": constant([]),
            "norm_topk_prob": constant(True),
        },
        rope=("linear",),
    ),
    Family(
        "Gemma",
        "gemma",
        "gemma",
        transforms=_minus_one("model.norm", *(f"model.layers.{{}}.{module}" for module in LAYER_NORM)),
        float_type="BF16",
    ),
    Family(
        "Gemma 2",
        "gemma2",
        "gemma2",
        settings={
            "attn_logit_softcapping": number_of("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": number_of("final_logit_softcapping", 30.0),
            "query_pre_attn_scalar": lambda facts: _query_scale(facts, 46),
        },
        names=in_layers(SANDWICH_NORM),
        transforms=_minus_one("model.norm", *_SANDWICH_NORMS),
        float_type="BF16",
    ),
    Family(
        "Gemma 3",
        "gemma3",
        "gemma3_text",
        settings={
            "rope_local_base_freq": number_of("rope.freq_base_swa", 10000.0),
            "query_pre_attn_scalar": lambda facts: _query_scale(facts, 62),
            "sliding_window": size_of("attention.sliding_window"),
            "sliding_window_pattern": _window_pattern,
        },
        names=in_layers(SANDWICH_NORM),
        transforms=_minus_one("model.norm", *_SANDWICH_NORMS, *_HEAD_NORMS),
        rope=("linear",),
        float_type="BF16",
        optional=("lm_head.weight",),
    ),
    Family(
        "Phi 3 and 4",
        "phi3",
        "phi3",
        settings={
            "original_max_position_embeddings": lambda facts: facts.size(
                "rope.scaling.original_context_length", facts.size("context_length")
            ),
        },
        rotation="partial",
        rope=("linear", "longrope"),
    ),
    Family(
        "StarCoder 2",
        "starcoder2",
        "starcoder2",
        settings={**_LAYER_NORM_SETTINGS},
    ),
    Family(
        "Command R",
        "command-r",
        "cohere",
        settings={
            **_LAYER_NORM_SETTINGS,
            "logit_scale": number_of("logit_scale"),
            "use_qk_norm": has("blk.0.attn_q_norm.weight"),
        },
    ),
    Family(
        "Command R7B",
        "cohere2",
        "cohere2",
        settings={
            **_LAYER_NORM_SETTINGS,
            "logit_scale": number_of("logit_scale"),
            "sliding_window": size_of("attention.sliding_window"),
        },
    ),
    Family(
        "Granite",
        "granite",
        "granite",
        settings={
            **_BIASES,
            "logits_scaling": number_of("logit_scale", 1.0),
            "attention_multiplier": lambda facts: facts.number("attention.scale", facts.head_dim**-0.5),
            "embedding_multiplier": number_of("embedding_scale", 1.0),
            "residual_multiplier": number_of("residual_scale", 1.0),
        },
        transforms=_ROTARY_PAIRS,
        rope=_ALL_ROPE,
    ),
    Family(
        "OLMo 2",
        "olmo2",
        "olmo2",
        names=in_layers(SANDWICH_NORM),
        rope=_ALL_ROPE,
    ),
    Family(
        "GPT-OSS",
        "gpt-oss",
        "gpt_oss",
        settings={
            **_EXPERTS,
            "intermediate_size": size_of("expert_feed_forward_length"),
            "sliding_window": size_of("attention.sliding_window"),
            "layer_types": _layer_types,
        },
        names=in_layers({"post_attention_layernorm": "post_attention_norm"}),
        rope=("yarn",),
        float_type="BF16",
    ),
    Family(
        "DeepSeek V2",
        "deepseek2",
        "deepseek_v2",
        settings={
            **_DEEPSEEK,
            # mlx_lm requires scaling; this one has no effect.
            "rope_scaling": lambda facts: rope.scaling(facts, ("yarn",)) or {"type": "yarn", "factor": 1.0},
            "topk_method": lambda facts: (
                "group_limited_greedy" if facts.size("expert_group_count", 1) > 1 else "greedy"
            ),
        },
        sources={
            f"{_SELF_ATTENTION}.kv_b_proj.weight": (
                Source(("blk.{}.attn_kv_b.weight",)),
                Source(
                    ("blk.{}.attn_k_b.weight", "blk.{}.attn_v_b.weight"), lambda facts: join_key_and_value(facts.heads)
                ),
            )
        },
        rotation="own",
    ),
    Family(
        "DeepSeek V3",
        "deepseek2",
        "deepseek_v3",
        settings=_DEEPSEEK,
        sources={
            f"{_SELF_ATTENTION}.embed_q.weight": (
                Source(("blk.{}.attn_k_b.weight",)),
                Source(("blk.{}.attn_kv_b.weight",), lambda facts: absorb_keys(facts.heads, _deepseek_key_rows(facts))),
            ),
            f"{_SELF_ATTENTION}.unembed_out.weight": (
                Source(("blk.{}.attn_v_b.weight",)),
                Source(("blk.{}.attn_kv_b.weight",), lambda facts: take_values(facts.heads, _deepseek_key_rows(facts))),
            ),
        },
        rotation="own",
        rope=("yarn",),
    ),
    Family(
        "GLM 4",
        "glm4",
        "glm4",
        settings={**_BIASES},
        names=in_layers(
            {
                "input_layernorm": "attn_norm",
                "post_self_attn_layernorm": "post_attention_norm",
                "post_attention_layernorm": "ffn_norm",
                "post_mlp_layernorm": "post_ffw_norm",
            }
        ),
        rotation="partial",
        float_type="BF16",
    ),
    Family(
        "SmolLM 3",
        "smollm3",
        "smollm3",
        settings={**_BIASES},
        transforms=_ROTARY_PAIRS,
        rope=_ALL_ROPE,
    ),
)


def find(facts: Facts) -> Family:
    """Return the family of a file.

    Raises:
        ImportFailed: it is not supported. The message lists those that are.
    """
    architecture = facts.architecture
    variant = _VARIANTS.get(architecture)
    for family in FAMILIES:
        if family.architecture == architecture and (variant is None or family.model_type == variant(facts)):
            return family
    if architecture in _OLLAMA_ONLY:
        raise facts.metadata.failure(
            f"the architecture {as_json(architecture)} is Ollama's own format, which is not supported; "
            "use a GGUF file for llama.cpp, such as those at hf.co"
        )
    supported = sorted({family.architecture for family in FAMILIES})
    raise facts.metadata.failure(
        f"the architecture {as_json(architecture)} is not supported; supported: {', '.join(supported)}"
    )
