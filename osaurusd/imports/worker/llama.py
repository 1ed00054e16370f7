"""Planning the conversion of a `llama` GGUF file to mlx_lm's llama model: its config and tensor names."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker import quantization, rope
from osaurusd.imports.worker.gguf import GgufHeader, Metadata, TensorInfo, shortest_float32

SUPPORTED_TYPES = ("F32", "F16", *quantization.BITS)
ROPE_FREQUENCIES = "rope_freqs.weight"
EMBEDDING = "token_embd.weight"

_EXPERTS = ("ffn_gate_inp.", "_exps.", "_shexp.")
# Keys of related models that use the same name. Other values change the computation, which mlx_lm's llama lacks.
_NEUTRAL_VALUES = {
    "llama.logit_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
}


@dataclass(frozen=True)
class Geometry:
    """The sizes that determine the shape of every tensor."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Placement:
    """The destination of one tensor.

    Attributes:
        source: None writes zeros.
        heads: number of heads whose rows must be reordered; 0 for none.
    """

    target: str
    shape: tuple[int, ...]
    source: TensorInfo | None
    heads: int = 0

    @property
    def quantized(self) -> bool:
        return self.source is not None and self.source.type in quantization.BITS


@dataclass(frozen=True)
class Plan:
    """Everything needed to write the model. `float_type` (F16 or F32) is the type of tensors that are not quantized."""

    config: dict[str, Any]
    placements: list[Placement]
    float_type: str


def plan_conversion(header: GgufHeader, rope_factors: npt.NDArray[np.float64] | None) -> Plan:
    """Plan how to write the model for mlx_lm.

    Args:
        header: the header of a file whose `general.architecture` is `llama`.
        rope_factors: the tensor `rope_freqs.weight` if there is one, float64 of shape (head_dim / 2,).

    Raises:
        ImportFailed: mlx_lm's llama cannot run the model, or a tensor is missing, unexpected, or of an unsupported type
            or shape. The message names it.
    """
    metadata = header.metadata
    _check_supported(header)
    geometry = _geometry(header)
    bias_of = {
        "attn": any(f"blk.0.attn_{part}.bias" in header.tensors for part in ("q", "k", "v", "output")),
        "ffn": any(f"blk.0.ffn_{part}.bias" in header.tensors for part in ("gate", "up", "down")),
    }
    placements = [_place(header, parameter) for parameter in _parameters(geometry, header, bias_of)]
    _check_no_unknown_tensors(header, placements)
    # MLX computes in the widest type: a single F32 norm would make every activation F32.
    float_type = "F32" if all(p.source is None or p.source.type == "F32" for p in placements) else "F16"
    config = {
        **_geometry_config(geometry),
        "max_position_embeddings": _positive(metadata, "llama.context_length"),
        "rms_norm_eps": shortest_float32(metadata.number("llama.attention.layer_norm_rms_epsilon")),
        "attention_bias": bias_of["attn"],
        "mlp_bias": bias_of["ffn"],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": "float32" if float_type == "F32" else "float16",
        **_rope_config(metadata, rope_factors, geometry.head_dim),
        **_quantization_config(placements),
    }
    return Plan(config, placements, float_type)


def _check_supported(header: GgufHeader) -> None:
    metadata = header.metadata
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise metadata.failure(f"the architecture {architecture!r} is not supported; of GGUF files only 'llama' is")
    if (kind := metadata.find_text("general.type")) not in (None, "model"):
        raise metadata.failure(f"the file contains a {kind!r}, not a model")
    if (metadata.find_integer("split.count") or 1) > 1:
        raise metadata.failure(
            "the file is one part of a split model; merge the parts (gguf-split --merge) and import the result"
        )
    experts = [name for name in header.tensors if any(mark in name for mark in _EXPERTS)]
    if experts or metadata.find_integer("llama.expert_count"):
        named = f" (tensor {experts[0]!r})" if experts else ""
        raise metadata.failure(f"mixture-of-experts models are not supported{named}")
    for key, neutral in _NEUTRAL_VALUES.items():
        value = metadata.find_number(key)
        if value is not None and value not in neutral:
            raise metadata.failure(f"the metadata key {key!r} has the unsupported value {value}")


def _geometry(header: GgufHeader) -> Geometry:
    metadata = header.metadata
    if EMBEDDING not in header.tensors:
        raise metadata.failure(f"the tensor {EMBEDDING!r} is missing")
    heads = _positive(metadata, "llama.attention.head_count")
    hidden = _positive(metadata, "llama.embedding_length")
    head_dim = metadata.find_integer("llama.attention.key_length") or hidden // heads
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.find_integer(key) not in (None, head_dim):
            raise metadata.failure(f"the metadata key {key!r} is {metadata.integer(key)}, but must be {head_dim}")
    kv_heads = metadata.find_integer("llama.attention.head_count_kv") or heads
    if kv_heads < 0 or heads % kv_heads or head_dim <= 0 or head_dim % 2:
        raise metadata.failure(f"{heads} heads of size {head_dim} with {kv_heads} key/value heads are invalid")
    layers = _positive(metadata, "llama.block_count")
    # Checked before allocating one entry per layer.
    if layers > len(header.tensors):
        raise metadata.failure(f"it declares {layers} layers, but has only {len(header.tensors)} tensors")
    return Geometry(
        layers=layers,
        hidden=hidden,
        intermediate=_positive(metadata, "llama.feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=header.tensors[EMBEDDING].shape[0],
    )


def _positive(metadata: Metadata, key: str) -> int:
    value = metadata.integer(key)
    if value <= 0:
        raise metadata.failure(f"the metadata key {key!r} is {value}, but must be positive")
    return value


@dataclass(frozen=True)
class _Parameter:
    """A parameter of mlx_lm's llama: its name there and in the file, its shape, and the number of heads to reorder."""

    target: str
    source: str
    shape: tuple[int, ...]
    heads: int = 0
    optional: bool = False


def _geometry_config(geometry: Geometry) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": geometry.hidden,
        "num_hidden_layers": geometry.layers,
        "intermediate_size": geometry.intermediate,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "vocab_size": geometry.vocabulary,
    }


def _parameters(geometry: Geometry, header: GgufHeader, bias_of: Mapping[str, bool]) -> Iterator[_Parameter]:
    yield _Parameter("model.embed_tokens.weight", EMBEDDING, (geometry.vocabulary, geometry.hidden))
    for layer in range(geometry.layers):
        yield from _layer_parameters(f"model.layers.{layer}", f"blk.{layer}", geometry, bias_of)
    yield _Parameter("model.norm.weight", "output_norm.weight", (geometry.hidden,))
    if "output.weight" in header.tensors:
        yield _Parameter("lm_head.weight", "output.weight", (geometry.vocabulary, geometry.hidden))


def _layer_parameters(
    target: str, source: str, geometry: Geometry, bias_of: Mapping[str, bool]
) -> Iterator[_Parameter]:
    hidden, inner = geometry.hidden, geometry.intermediate
    query, key = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    yield _Parameter(f"{target}.input_layernorm.weight", f"{source}.attn_norm.weight", (hidden,))
    yield _Parameter(f"{target}.post_attention_layernorm.weight", f"{source}.ffn_norm.weight", (hidden,))
    for module, part, shape, heads in (
        ("self_attn.q_proj", "attn_q", (query, hidden), geometry.heads),
        ("self_attn.k_proj", "attn_k", (key, hidden), geometry.kv_heads),
        ("self_attn.v_proj", "attn_v", (key, hidden), 0),
        ("self_attn.o_proj", "attn_output", (hidden, query), 0),
        ("mlp.gate_proj", "ffn_gate", (inner, hidden), 0),
        ("mlp.up_proj", "ffn_up", (inner, hidden), 0),
        ("mlp.down_proj", "ffn_down", (hidden, inner), 0),
    ):
        yield _Parameter(f"{target}.{module}.weight", f"{source}.{part}.weight", shape, heads)
        if bias_of[part.partition("_")[0]]:
            # mlx_lm has biases for all projections of a block or for none; a bias missing in the file is zero.
            yield _Parameter(f"{target}.{module}.bias", f"{source}.{part}.bias", shape[:1], heads, optional=True)


def _place(header: GgufHeader, parameter: _Parameter) -> Placement:
    tensor = header.tensors.get(parameter.source)
    if tensor is None:
        if parameter.optional:
            return Placement(parameter.target, parameter.shape, None)
        raise header.metadata.failure(f"the tensor {parameter.source!r} is missing")
    supported = SUPPORTED_TYPES if len(parameter.shape) == 2 else SUPPORTED_TYPES[:2]
    if tensor.type not in supported:
        raise header.metadata.failure(
            f"tensor {parameter.source!r} has the type {tensor.type}; supported here: {', '.join(supported)}"
        )
    if tensor.shape != parameter.shape:
        raise header.metadata.failure(
            f"tensor {parameter.source!r} has the shape {list(tensor.shape)}, "
            f"but the metadata implies {list(parameter.shape)}"
        )
    return Placement(parameter.target, parameter.shape, tensor, parameter.heads)


def _check_no_unknown_tensors(header: GgufHeader, placements: list[Placement]) -> None:
    known = {placement.source.name for placement in placements if placement.source} | {ROPE_FREQUENCIES}
    if unknown := sorted(header.tensors.keys() - known):
        raise header.metadata.failure(f"unexpected tensor {unknown[0]!r}")


def _rope_config(metadata: Metadata, factors: npt.NDArray[np.float64] | None, head_dim: int) -> dict[str, Any]:
    base = shortest_float32(metadata.find_number("llama.rope.freq_base") or 10000.0)
    if base <= 1:
        raise metadata.failure(f"the RoPE base is {base}")
    scaling = rope.linear_scaling(metadata, "llama")
    if factors is not None:
        if factors.shape != (head_dim // 2,):
            raise metadata.failure(f"tensor {ROPE_FREQUENCIES!r} has the shape {list(factors.shape)}")
        llama3 = rope.llama3_scaling(factors, base, metadata)
        if scaling and llama3:
            raise metadata.failure("RoPE is scaled twice, linearly and by frequency")
        scaling = scaling or llama3
    return {"rope_theta": base, "rope_traditional": False} | ({"rope_scaling": scaling} if scaling else {})


def _quantization_config(placements: list[Placement]) -> dict[str, Any]:
    """Return the key `quantization` for mlx_lm's `load_model`: the most common width, and each module that differs."""
    bits = {
        placement.target.removesuffix(".weight"): quantization.BITS[placement.source.type] if placement.quantized else 0
        for placement in placements
        if placement.source and len(placement.shape) == 2
    }
    widths = Counter(width for width in bits.values() if width)
    if not widths:
        return {}
    default = widths.most_common(1)[0][0]
    config: dict[str, Any] = {"group_size": quantization.GROUP_SIZE, "bits": default, "mode": "affine"}
    for module, width in bits.items():
        if width != default:
            own = {"group_size": quantization.GROUP_SIZE, "bits": width, "mode": "affine"}
            config[module] = own if width else False
    return {"quantization": config}
