"""Random networks of every family: mlx_lm's, and the GGUF file that llama.cpp's converter would write for it.

Tensor names come from the table of the `gguf` package, which is independent of the one under test.
"""

import importlib
from dataclasses import dataclass, field

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from mlx.utils import tree_flatten

from osaurusd.imports.worker import quantization

from . import blocks
from .gguf_writer import byte_level_tokenizer

HIDDEN, INNER, HEADS, KV_HEADS, HEAD = 256, 256, 8, 4, 32

_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_KEYS = {
    "context_length": 128,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2}


@dataclass(frozen=True)
class Case:
    """A family.

    Attributes:
        config: settings of mlx_lm besides the common ones.
        keys: metadata besides the common keys, without the architecture.
        rotary_pairs: the converter interleaves the rows of queries and keys.
        norm_offset: what the converter adds to the weights of norms.
        float_type: the type that the import chooses for floats.
    """

    model_type: str
    architecture: str
    config: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    rotary_pairs: bool = False
    norm_offset: float = 0.0
    float_type: Type = Type.F16
    layers: int = 2

    def __str__(self):
        return self.model_type


_DEEPSEEK_CONFIG = {
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_key_value_heads": HEADS,
    "moe_intermediate_size": 256,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    },
}
_DEEPSEEK_KEYS = {
    **_EXPERT_KEYS,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 256,
    "expert_weights_scale": 2.5,
    "leading_dense_block_count": 1,
    "attention.kv_lora_rank": 256,
    "rope.dimension_count": 32,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.yarn_log_multiplier": 0.07,
}

CASES = (
    Case("llama", "llama", {"attention_bias": True}, rotary_pairs=True),
    Case("mixtral", "llama", _EXPERTS, _EXPERT_KEYS, rotary_pairs=True),
    Case("qwen2", "qwen2"),
    Case(
        "qwen2_moe",
        "qwen2moe",
        {**_EXPERTS, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512},
        _EXPERT_KEYS,
    ),
    Case("qwen3", "qwen3", keys={"attention.key_length": 64}, config={"head_dim": 64}),
    Case(
        "qwen3_moe",
        "qwen3moe",
        {
            **_EXPERTS,
            "moe_intermediate_size": 256,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        },
        {**_EXPERT_KEYS, "expert_feed_forward_length": 256},
    ),
    Case("gemma", "gemma", norm_offset=1.0, float_type=Type.BF16),
    Case(
        "gemma2",
        "gemma2",
        {"query_pre_attn_scalar": HEAD, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0},
        {"attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0},
        norm_offset=1.0,
        float_type=Type.BF16,
    ),
    Case(
        "gemma3_text",
        "gemma3",
        {
            "query_pre_attn_scalar": HEAD,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
            "rope_scaling": {"type": "linear", "factor": 8.0},
        },
        {
            "attention.sliding_window": 4,
            "attention.sliding_window_pattern": 2,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        norm_offset=1.0,
        float_type=Type.BF16,
    ),
    Case(
        "phi3",
        "phi3",
        {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 128},
        {"rope.dimension_count": 24},
    ),
    Case("starcoder2", "starcoder2", {"norm_epsilon": 1e-4}, {"attention.layer_norm_epsilon": 1e-4}),
    Case(
        "cohere",
        "command-r",
        {"layer_norm_eps": 1e-4, "logit_scale": 0.25, "use_qk_norm": True},
        {"attention.layer_norm_epsilon": 1e-4, "logit_scale": 0.25},
    ),
    Case(
        "cohere2",
        "cohere2",
        {"layer_norm_eps": 1e-4, "logit_scale": 0.25, "sliding_window": 4},
        {"attention.layer_norm_epsilon": 1e-4, "logit_scale": 0.25, "attention.sliding_window": 4},
        layers=4,
    ),
    Case(
        "granite",
        "granite",
        {
            "logits_scaling": 4.0,
            "attention_multiplier": 0.125,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.25,
            "attention_bias": False,
            "mlp_bias": False,
        },
        {"logit_scale": 4.0, "attention.scale": 0.125, "embedding_scale": 6.0, "residual_scale": 0.25},
        rotary_pairs=True,
    ),
    Case("olmo2", "olmo2"),
    Case(
        "gpt_oss",
        "gpt-oss",
        {
            **_EXPERTS,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
        {
            **_EXPERT_KEYS,
            "expert_feed_forward_length": INNER,
            "attention.sliding_window": 4,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
        float_type=Type.BF16,
    ),
    Case(
        "deepseek_v2",
        "deepseek2",
        {**_DEEPSEEK_CONFIG, "q_lora_rank": None},
        {**_DEEPSEEK_KEYS, "attention.key_length": 96, "attention.value_length": 32},
    ),
    Case(
        "deepseek_v3",
        "deepseek2",
        {**_DEEPSEEK_CONFIG, "q_lora_rank": 256, "n_group": 2, "topk_group": 1},
        {
            **_DEEPSEEK_KEYS,
            "attention.q_lora_rank": 256,
            "attention.key_length": 288,
            "attention.value_length": 256,
            "attention.key_length_mla": 96,
            "attention.value_length_mla": 32,
            "attention.head_count_kv": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_group_count": 2,
            "expert_group_used_count": 1,
        },
    ),
    Case(
        "glm4",
        "glm4",
        {"attention_bias": True, "partial_rotary_factor": 0.5},
        {"rope.dimension_count": 16},
        float_type=Type.BF16,
    ),
    Case("smollm3", "smollm3", rotary_pairs=True, layers=4),
)


class Network:
    """A network of a family with random parameters, whose matrices a ggml type holds exactly.

    Args:
        kind: of all matrices, or of the experts if there is an `other_kind`.
        vocabulary: the number of embeddings, if it differs from the number of tokens.

    Attributes:
        parameters: as mlx_lm has them.
        tensors: bytes and type of each tensor of the file.
    """

    def __init__(self, case, kind, *, tied=False, tokenizer=None, vocabulary=None, other_kind=None):
        self.case, self.kind = case, kind
        self._other_kind = other_kind or kind
        self.tokenizer = tokenizer or byte_level_tokenizer()
        vocabulary = vocabulary or len(self.tokenizer["tokenizer.ggml.tokens"])
        config = {
            **_SIZES,
            "num_hidden_layers": case.layers,
            "model_type": case.model_type,
            "vocab_size": vocabulary,
            **case.config,
        }
        config["tie_word_embeddings"] = tied
        module = importlib.import_module(f"mlx_lm.models.{case.model_type}")
        self.model = module.Model(module.ModelArgs.from_dict(config))
        if tied and hasattr(self.model, "sanitize"):
            self.model.sanitize({})
        self.parameters, self.tensors = {}, {}
        self._names = gguf.TensorNameMap(_ARCHITECTURES[case.architecture], case.layers)
        self._rng = np.random.default_rng(0)
        for name, value in tree_flatten(self.model.parameters()):
            self._add(name, value.shape)
        self.model.load_weights([(name, mx.array(value)) for name, value in self.parameters.items()])

    def _add(self, name, shape):
        values = self._rng.normal(size=shape).astype(np.float32) * 0.1 + (len(shape) == 1 and "norm" in name)
        # Routers and vectors are not quantized.
        small = values.ndim == 1 or any(part in name for part in (".gate.", "router", "q_norm", "k_norm"))
        small = small or name.endswith(".bias") or "shared_expert_gate" in name
        # Rows that are not a multiple of the block size stay floats, as in the files of llama.cpp.
        small = small or shape[-1] % gguf.GGML_QUANT_SIZES[self.kind][0] != 0
        kind = Type.F32 if small else self.kind if "experts" in name else self._other_kind
        offset = np.float32(self.case.norm_offset if name.endswith("norm.weight") else 0.0)
        if small:
            # Few digits: exact in F16 and BF16.
            values = np.round(values * 64) / 64
        data = blocks.encode(self._permuted(name, values + offset) if kind in blocks.FLOATS else values, kind)
        values = self._unpermuted(name, blocks.decode(data, kind, shape)) - offset
        if quantization.held_scheme(kind.name) is None and kind != Type.F32:
            # The import stores these as floats.
            float_type = Type.BF16 if kind == Type.BF16 else self.case.float_type
            values = blocks.decode(blocks.encode(values, float_type), float_type, shape)
        self.tensors[self._tensor_name(name)] = (data, kind)
        self.parameters[name] = values

    def _tensor_name(self, name):
        for part, published in (
            ("block_sparse_moe.switch_mlp", "mlp.experts"),
            ("switch_mlp", "experts"),
            ("e_score_correction_bias", "e_score_correction.bias"),
            ("embed_q", "k_b_proj"),
            ("unembed_out", "v_b_proj"),
            (".sinks", ".sinks.weight"),
        ):
            name = name.replace(part, published) if part in name else name
        tensor = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert tensor is not None, name
        return tensor

    def _is_rotated(self, name):
        return self.case.rotary_pairs and name.split(".")[-2] in ("q_proj", "k_proj")

    def _permuted(self, name, values):
        """Interleave the rotary pairs, as llama.cpp's converter does."""
        if not self._is_rotated(name):
            return values
        shape = (-1, 2, HEAD // 2, *values.shape[1:])
        return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)

    def _unpermuted(self, name, values):
        if not self._is_rotated(name):
            return values
        shape = (-1, HEAD // 2, 2, *values.shape[1:])
        return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)

    def keys(self):
        return {**_KEYS, "block_count": self.case.layers, **self.case.keys}

    def write(self, path, **overrides):
        """Write the GGUF file with the `gguf` package, and return its path."""
        keys = {f"{self.case.architecture}.{key}": value for key, value in self.keys().items()}
        return write_file(path, self.case.architecture, keys | self.tokenizer | overrides, self.tensors)


def write_file(path, architecture, metadata, tensors):
    """Write a GGUF file with the `gguf` package, and return its path. `tensors`: bytes and type by name."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, (data, kind) in tensors.items():
        # The converter leaves out dimensions of one.
        shape = [size for size in data.shape if size > 1]
        writer.add_tensor(name, np.ascontiguousarray(data).reshape(shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer, key, value):
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
