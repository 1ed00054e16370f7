"""How a family of models is described: the names of its tensors, and where its settings come from.

Names of tensors, keys and what they mean are llama.cpp's (src/llama-arch.cpp, convert_hf_to_gguf.py); names of
parameters and settings are those of mlx_lm's implementations (mlx_lm/models).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from osaurusd.imports.worker import rope
from osaurusd.imports.worker.facts import EMBEDDING, OUTPUT, Facts
from osaurusd.imports.worker.transforms import Transform
from osaurusd.wire.errors import as_json

Setting: TypeAlias = Callable[[Facts], Any]
MakeTransform: TypeAlias = Callable[[Facts], Transform]

_LAYER = re.compile(r"\.(\d+)\.")


def has(name: str) -> Setting:
    return lambda facts: facts.has(name)


def size_of(name: str) -> Setting:
    return lambda facts: facts.size(name)


def number_of(name: str, default: float | None = None) -> Setting:
    return lambda facts: facts.number(name, default)


LAYER_NORM = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
SANDWICH_NORM = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def in_layers(names: Mapping[str, str], parent: str = "", suffix: str = "") -> dict[str, str]:
    return {f"model.layers.{{}}.{parent}{module}": f"blk.{{}}.{tensor}{suffix}" for module, tensor in names.items()}


_ATTENTION = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "q_a_proj": "attn_q_a",
    "q_a_layernorm": "attn_q_a_norm",
    "q_b_proj": "attn_q_b",
    "kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "kv_a_layernorm": "attn_kv_a_norm",
    "kv_b_proj": "attn_kv_b",
    "embed_q": "attn_k_b",
    "unembed_out": "attn_v_b",
}

_NAMES = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm": "output_norm",
    "lm_head.weight": OUTPUT,
    **in_layers(LAYER_NORM),
    **in_layers(_ATTENTION, "self_attn."),
    "model.layers.{}.self_attn.sinks": "blk.{}.attn_sinks.weight",
    **in_layers({**_MLP, "gate_up_proj": "ffn_up", "c_fc": "ffn_up", "c_proj": "ffn_down"}, "mlp."),
    **in_layers({"gate": "ffn_gate_inp", "router": "ffn_gate_inp", "shared_expert_gate": "ffn_gate_inp_shexp"}, "mlp."),
    **in_layers(_MLP, "mlp.switch_mlp.", "_exps"),
    **in_layers(_MLP, "mlp.experts.", "_exps"),
    **in_layers(_MLP, "mlp.shared_expert.", "_shexp"),
    **in_layers(_MLP, "mlp.shared_experts.", "_shexp"),
    "model.layers.{}.mlp.gate.e_score_correction_bias": "blk.{}.exp_probs_b.bias",
    **in_layers({"gate": "ffn_gate_inp"}, "block_sparse_moe."),
    **in_layers(_MLP, "block_sparse_moe.switch_mlp.", "_exps"),
}

_SETTINGS: dict[str, Setting] = {
    "vocab_size": lambda facts: facts.vocabulary,
    "hidden_size": lambda facts: facts.hidden,
    "num_hidden_layers": lambda facts: facts.layers,
    "intermediate_size": size_of("feed_forward_length"),
    "num_attention_heads": lambda facts: facts.heads,
    "num_key_value_heads": lambda facts: facts.kv_heads,
    "head_dim": lambda facts: facts.head_dim,
    "max_position_embeddings": size_of("context_length"),
    "rms_norm_eps": number_of("attention.layer_norm_rms_epsilon"),
    "rope_theta": rope.base,
    "tie_word_embeddings": lambda facts: facts.tied,
}


@dataclass(frozen=True)
class Source:
    """Tensors from which a parameter is computed. It applies only if the file has all of them."""

    tensors: tuple[str, ...]
    transform: MakeTransform | None = None


@dataclass(frozen=True)
class Family:
    """How to convert the files of a family.

    Attributes:
        title: for messages and documentation.
        architecture: `general.architecture` of its files.
        model_type: mlx_lm's name.
        settings: `config.json`, in addition to the common settings; None removes one of these.
        names: the tensors of modules or parameters, where they differ from the common names.
        transforms: by parameter.
        sources: parameters with more than one way to derive them.
        rotation: the part of each head that RoPE rotates: all, as `rope.dimension_count` says, or as the settings say.
        rope: the types of RoPE scaling that mlx_lm implements for it.
        float_type: F16, or BF16 for families whose activations exceed the range of F16.
        optional: parameters that mlx_lm leaves out if the file has none.
    """

    title: str
    architecture: str
    model_type: str
    settings: Mapping[str, Setting | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    transforms: Mapping[str, MakeTransform] = field(default_factory=dict)
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    rotation: Literal["full", "partial", "own"] = "full"
    rope: tuple[str, ...] = ()
    float_type: str = "F16"
    optional: tuple[str, ...] = ()

    def build_config(self, facts: Facts) -> dict[str, Any]:
        """Return the content of `config.json` without quantization and token ids."""
        settings = {"rope_scaling": self._rope_scaling, **_SETTINGS, **self.settings}
        config = {name: setting(facts) for name, setting in settings.items() if setting}
        if self.rotation == "full" and facts.rotary_fraction != 1:
            key = facts.key("rope.dimension_count")
            raise facts.metadata.failure(
                f"the metadata key {as_json(key)} must be {facts.head_dim}, the size of a head"
            )
        if self.rotation == "partial":
            config["partial_rotary_factor"] = facts.rotary_fraction
        if config["rope_scaling"] is None:
            del config["rope_scaling"]
        facts.check_all_settings_are_known()
        return {"model_type": self.model_type, **config}

    def _rope_scaling(self, facts: Facts) -> dict[str, Any] | None:
        return rope.scaling(facts, self.rope)

    def source_of(self, parameter: str) -> str:
        """Return the tensor of a parameter that has only one."""
        names = {**_NAMES, **self.names}
        layer, generic = _generic(parameter)
        module, _, leaf = generic.rpartition(".")
        name = names.get(generic) or f"{names.get(module, module)}.{leaf}"
        return name.replace("{}", layer)

    def sources_of(self, facts: Facts, parameter: str) -> tuple[tuple[str, ...], Transform | None]:
        """Return the tensors of a parameter, and how to derive it from them."""
        layer, generic = _generic(parameter)
        for source in self.sources.get(generic, ()):
            names = tuple(name.replace("{}", layer) for name in source.tensors)
            if all(facts.has(name) for name in names):
                return names, source.transform(facts) if source.transform else None
        module = generic.rpartition(".")[0]
        make = self.transforms.get(generic) or self.transforms.get(module)
        return (self.source_of(parameter),), make(facts) if make else None


def _generic(parameter: str) -> tuple[str, str]:
    """Return the number of the layer and the name with `{}` in its place."""
    match = _LAYER.search(parameter)
    return (match[1], _LAYER.sub(".{}.", parameter, count=1)) if match else ("", parameter)
