"""Which architectures can be divided, and what must be divisible by the number of ranks.

The implementations are `Model.shard` and `PipelineMixin` of mlx_lm, which only a worker imports; a test compares them
with these tables.
"""

from collections.abc import Mapping
from typing import NamedTuple

from osaurusd.wire.placement import Split

_HEADS = ("num_attention_heads", "num_key_value_heads")
# Latent attention (DeepSeek) has no heads for keys and values.
_LATENT_HEADS = ("num_attention_heads",)
_HYBRID_COUNTS = (*_HEADS, "linear_num_key_heads", "linear_num_value_heads", "vocab_size")


class Family(NamedTuple):
    """How models of an architecture can be divided.

    Attributes:
        splits: the supported splits.
        counts: keys of the config that a tensor split divides: heads, and rows of the head of the vocabulary.
    """

    splits: tuple[Split, ...]
    counts: tuple[str, ...] = _HEADS

    @property
    def divides_cache(self) -> bool:
        """Whether each rank of a tensor split caches only its own heads."""
        return "num_key_value_heads" in self.counts


_TENSOR = Family(("tensor",))
_BOTH = Family(("tensor", "pipeline"))
_BOTH_LATENT = Family(("tensor", "pipeline"), _LATENT_HEADS)
_BOTH_HYBRID = Family(("tensor", "pipeline"), _HYBRID_COUNTS)

FAMILIES: Mapping[str, Family] = {
    "llama": _TENSOR,
    "mistral": _TENSOR,
    "ministral3": _BOTH,
    "mistral4": _BOTH_LATENT,
    "qwen2": _BOTH,
    "qwen3": _TENSOR,
    "qwen3_moe": _BOTH,
    "qwen3_next": Family(("pipeline",)),
    "qwen3_5": _BOTH_HYBRID,
    "qwen3_5_moe": _BOTH_HYBRID,
    "gpt_oss": _TENSOR,
    "deepseek_v2": _BOTH_LATENT,
    "deepseek_v3": _BOTH_LATENT,
    "deepseek_v32": _BOTH_LATENT,
    "kimi_k2": _BOTH_LATENT,
    "kimi_k25": _BOTH_LATENT,
    "glm4_moe": _BOTH,
    "glm4_moe_lite": _BOTH_LATENT,
    "glm_moe_dsa": _BOTH_LATENT,
    "minimax": _TENSOR,
    "minimax_m2": _TENSOR,
    "exaone_moe": _TENSOR,
}
"""The architectures that can be divided, by `model_type`."""

NOT_OFFERED = frozenset(
    {
        *("bailing_hybrid", "deepseek_v41", "deepseek_v41_text", "iquestcoder", "iquestloopcoder", "joyai_llm_flash"),
        *("kimi_k3", "kimi_vl", "longcat_flash", "longcat_flash_ngram", "minimax_m3_vl", "muse_spark"),
        *("prism_hadamard_qwen35", "solar_open", "step3p5", "xverse"),
    }
)
"""Architectures that mlx_lm can divide, but whose rules have not been checked for osaurusd."""

DIVIDED_SIZES = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
"""Keys of the config with widths that every tensor split divides, if they exist."""


def families_table() -> list[str]:
    """Return the table of architectures for the documentation, as lines of Markdown."""
    rows = [
        f"| `{name}` | {' | '.join('yes' if split in family.splits else '' for split in ('tensor', 'pipeline'))} |"
        for name, family in sorted(FAMILIES.items())
    ]
    return ["| architecture | tensor | pipeline |", "| --- | --- | --- |", *rows]
