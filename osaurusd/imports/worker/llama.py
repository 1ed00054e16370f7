"""Translates a GGUF file of architecture `llama` into what mlx_lm's llama model reads: its config and tensor names."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker import blocks, rope
from osaurusd.imports.worker.gguf_file import GgufHeader, TensorInfo
from osaurusd.imports.worker.metadata import Metadata, shortest_float32

SUPPORTED_TYPES = ("F32", "F16", *blocks.BITS)
ROPE_FREQUENCIES = "rope_freqs.weight"
EMBEDDING = "token_embd.weight"

_EXPERTS = ("ffn_gate_inp.", "_exps.", "_shexp.")
# Keys of llama's relatives that share its name; each changes the computation in a way that mlx_lm's llama has not.
_NEUTRAL = {
    "llama.logit_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
}


@dataclass(frozen=True)
class Geometry:
    """The sizes that give every tensor its shape."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Placement:
    """Where one tensor of the file goes.

    `source` None stands for zeros. `heads` is how many heads' rows have to be put back into order, 0 for none.
    """

    target: str
    shape: tuple[int, ...]
    source: TensorInfo | None
    heads: int = 0

    @property
    def quantized(self) -> bool:
        return self.source is not None and self.source.type in blocks.BITS


@dataclass(frozen=True)
class Plan:
    """All that is needed to write the model; `float_type` is F16 or F32, what is not quantized is kept as that."""

    config: dict[str, Any]
    placements: list[Placement]
    float_type: str


def plan(header: GgufHeader, rope_factors: npt.NDArray[np.float64] | None) -> Plan:
    """How to write the model of `header` for mlx_lm.

    Args:
        header: of a file whose `general.architecture` is `llama`.
        rope_factors: what the tensor `rope_freqs.weight` holds, float64 of shape (head_dim / 2,), where there is one.

    Raises:
        ImportFailed: the file is of another kind than mlx_lm's llama can compute, or a tensor is missing, unexpected,
            or of a type or shape that is not supported; the message names it.
    """
    metadata = header.metadata
    _check_kind(header)
    geometry = _geometry(header)
    bias_of = {
        "attn": any(f"blk.0.attn_{part}.bias" in header.tensors for part in ("q", "k", "v", "output")),
        "ffn": any(f"blk.0.ffn_{part}.bias" in header.tensors for part in ("gate", "up", "down")),
    }
    placements = [_placed(header, slot) for slot in _slots(geometry, header, bias_of)]
    _check_nothing_left(header, placements)
    # MLX computes in the widest type that it meets: one F32 norm would make every activation F32.
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


def _check_kind(header: GgufHeader) -> None:
    metadata = header.metadata
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise metadata.failure(f"its architecture is {architecture!r}; of GGUF files only 'llama' is supported")
    if (kind := metadata.find_text("general.type")) not in (None, "model"):
        raise metadata.failure(f"it holds a {kind!r}, not a model")
    if (metadata.find_integer("split.count") or 1) > 1:
        raise metadata.failure("it is one part of a split model; join the parts (gguf-split --merge) and import that")
    experts = [name for name in header.tensors if any(mark in name for mark in _EXPERTS)]
    if experts or metadata.find_integer("llama.expert_count"):
        named = f" (tensor {experts[0]!r})" if experts else ""
        raise metadata.failure(f"it is a mixture-of-experts model{named}; those are not supported")
    for key, neutral in _NEUTRAL.items():
        value = metadata.find_number(key)
        if value is not None and value not in neutral:
            raise metadata.failure(f"its metadata key {key!r} is {value}, which is not supported")


def _geometry(header: GgufHeader) -> Geometry:
    metadata = header.metadata
    if EMBEDDING not in header.tensors:
        raise metadata.failure(f"it lacks the tensor {EMBEDDING!r}")
    heads = _positive(metadata, "llama.attention.head_count")
    hidden = _positive(metadata, "llama.embedding_length")
    head_dim = metadata.find_integer("llama.attention.key_length") or hidden // heads
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.find_integer(key) not in (None, head_dim):
            raise metadata.failure(f"its metadata key {key!r} is {metadata.integer(key)}; it must be {head_dim} here")
    kv_heads = metadata.find_integer("llama.attention.head_count_kv") or heads
    if kv_heads < 0 or heads % kv_heads or head_dim <= 0 or head_dim % 2:
        raise metadata.failure(f"{heads} heads of size {head_dim} with {kv_heads} key/value heads cannot be")
    layers = _positive(metadata, "llama.block_count")
    # Checked before a list as long as this is made.
    if layers > len(header.tensors):
        raise metadata.failure(f"it announces {layers} layers and has {len(header.tensors)} tensors")
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
        raise metadata.failure(f"its metadata key {key!r} is {value}")
    return value


@dataclass(frozen=True)
class _Slot:
    """A parameter of mlx_lm's llama: its name there and in the file, its shape, and the heads of its rows."""

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


def _slots(geometry: Geometry, header: GgufHeader, bias_of: Mapping[str, bool]) -> Iterator[_Slot]:
    yield _Slot("model.embed_tokens.weight", EMBEDDING, (geometry.vocabulary, geometry.hidden))
    for layer in range(geometry.layers):
        yield from _layer_slots(f"model.layers.{layer}", f"blk.{layer}", geometry, bias_of)
    yield _Slot("model.norm.weight", "output_norm.weight", (geometry.hidden,))
    if "output.weight" in header.tensors:
        yield _Slot("lm_head.weight", "output.weight", (geometry.vocabulary, geometry.hidden))


def _layer_slots(target: str, source: str, geometry: Geometry, bias_of: Mapping[str, bool]) -> Iterator[_Slot]:
    hidden, inner = geometry.hidden, geometry.intermediate
    query, key = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    yield _Slot(f"{target}.input_layernorm.weight", f"{source}.attn_norm.weight", (hidden,))
    yield _Slot(f"{target}.post_attention_layernorm.weight", f"{source}.ffn_norm.weight", (hidden,))
    for module, part, shape, heads in (
        ("self_attn.q_proj", "attn_q", (query, hidden), geometry.heads),
        ("self_attn.k_proj", "attn_k", (key, hidden), geometry.kv_heads),
        ("self_attn.v_proj", "attn_v", (key, hidden), 0),
        ("self_attn.o_proj", "attn_output", (hidden, query), 0),
        ("mlp.gate_proj", "ffn_gate", (inner, hidden), 0),
        ("mlp.up_proj", "ffn_up", (inner, hidden), 0),
        ("mlp.down_proj", "ffn_down", (hidden, inner), 0),
    ):
        yield _Slot(f"{target}.{module}.weight", f"{source}.{part}.weight", shape, heads)
        if bias_of[part.partition("_")[0]]:
            # mlx_lm has biases on all of a block's projections or on none; one that the file has not is zero.
            yield _Slot(f"{target}.{module}.bias", f"{source}.{part}.bias", shape[:1], heads, optional=True)


def _placed(header: GgufHeader, slot: _Slot) -> Placement:
    tensor = header.tensors.get(slot.source)
    if tensor is None:
        if slot.optional:
            return Placement(slot.target, slot.shape, None)
        raise header.metadata.failure(f"it lacks the tensor {slot.source!r}")
    supported = SUPPORTED_TYPES if len(slot.shape) == 2 else SUPPORTED_TYPES[:2]
    if tensor.type not in supported:
        raise header.metadata.failure(
            f"tensor {slot.source!r} is of type {tensor.type}; supported there are {', '.join(supported)}"
        )
    if tensor.shape != slot.shape:
        raise header.metadata.failure(
            f"tensor {slot.source!r} has the shape {list(tensor.shape)}; the metadata says {list(slot.shape)}"
        )
    return Placement(slot.target, slot.shape, tensor, slot.heads)


def _check_nothing_left(header: GgufHeader, placements: list[Placement]) -> None:
    known = {placement.source.name for placement in placements if placement.source} | {ROPE_FREQUENCIES}
    if unknown := sorted(header.tensors.keys() - known):
        raise header.metadata.failure(f"it has the unexpected tensor {unknown[0]!r}")


def _rope_config(metadata: Metadata, factors: npt.NDArray[np.float64] | None, head_dim: int) -> dict[str, Any]:
    base = shortest_float32(metadata.find_number("llama.rope.freq_base") or 10000.0)
    if base <= 1:
        raise metadata.failure(f"its RoPE base is {base}")
    scaling = rope.linear_scaling(metadata, "llama")
    if factors is not None:
        if factors.shape != (head_dim // 2,):
            raise metadata.failure(f"tensor {ROPE_FREQUENCIES!r} has the shape {list(factors.shape)}")
        by_frequency = rope.llama3_scaling(factors, base, metadata)
        if scaling and by_frequency:
            raise metadata.failure("it scales RoPE twice, linearly and by frequency")
        scaling = scaling or by_frequency
    return {"rope_theta": base, "rope_traditional": False} | ({"rope_scaling": scaling} if scaling else {})


def _quantization_config(placements: list[Placement]) -> dict[str, Any]:
    """The key `quantization` as mlx_lm's `load_model` reads it: the commonest width, and each layer that differs."""
    bits = {
        placement.target.removesuffix(".weight"): blocks.BITS[placement.source.type] if placement.quantized else 0
        for placement in placements
        if placement.source and len(placement.shape) == 2
    }
    widths = Counter(width for width in bits.values() if width)
    if not widths:
        return {}
    usual = widths.most_common(1)[0][0]
    quantization: dict[str, Any] = {"group_size": blocks.GROUP_SIZE, "bits": usual, "mode": "affine"}
    for module, width in bits.items():
        if width != usual:
            own = {"group_size": blocks.GROUP_SIZE, "bits": width, "mode": "affine"}
            quantization[module] = own if width else False
    return {"quantization": quantization}
