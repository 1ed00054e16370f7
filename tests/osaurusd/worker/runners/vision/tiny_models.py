"""Vision-language models with tiny random weights, one for each supported family."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from osaurusd.worker.runners.vision.network import model_classes

EDGE = 32
PATCH = 4
END = "<|im_end|>"

# Random weights of this scale make the output depend on every token of the prompt.
_SCALE = 3.0
_EMBEDDING_SCALE = 0.5
_GROUP_SIZE = 32
_QUANTIZED_MULTIPLE = 64
_ATTENTION_NORMS = tuple(f"{name}.weight" for name in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"))

_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 8,
    "image_size": EDGE,
    "patch_size": PATCH,
    "num_channels": 3,
}
_NORMALIZED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'image' %}PLACEHOLDER{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Recipe(NamedTuple):
    """How to make a model of a family.

    Attributes:
        placeholder: what the chat template renders for an image.
        token: the token that holds features.
        config, text, vision: keys of config.json and its sections.
        images: preprocessor_config.json.
        processor: processor_config.json.
        specials: other special tokens, and the attributes of the tokenizer that name them.
    """

    placeholder: str
    token: str
    text: dict[str, Any]
    vision: dict[str, Any]
    images: dict[str, Any]
    config: Mapping[str, Any] = MappingProxyType({})
    processor: Mapping[str, Any] = MappingProxyType({})
    specials: Mapping[str, str] = MappingProxyType({})


_TILES = {
    "do_image_splitting": True,
    "size": {"longest_edge": 2 * EDGE},
    "max_image_size": {"longest_edge": EDGE},
    **_NORMALIZED,
}
_ROWS = {f"tile_{row}_{column}": f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)}
_PIXTRAL = {
    "image_processor_type": "PixtralImageProcessor",
    "size": {"longest_edge": 2 * EDGE},
    "patch_size": {"height": 8, "width": 8},
    **_NORMALIZED,
}
_PIXTRAL_TOKENS = {"image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}

_QWEN_TEXT = {
    "num_key_value_heads": 2,
    "rope_theta": 1e4,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
}
_QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": (4 * PATCH) ** 2,
    "max_pixels": (16 * PATCH) ** 2,
    **_NORMALIZED,
}
_QWEN_TOKENS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "video_token": "<|video_pad|>",
}
_QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_VISION = {
    "num_heads": 4,
    "in_channels": 3,
    "in_chans": 3,
    "depth": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "patch_size": PATCH,
    "spatial_patch_size": PATCH,
}

RECIPES = {
    "smolvlm": Recipe(
        "<image>",
        "<image>",
        {"model_type": "llama"},
        {"model_type": "smolvlm_vision", "patch_size": 8},
        {"image_processor_type": "SmolVLMImageProcessor", "video_sampling": {}, **_TILES},
        {"scale_factor": 2},
        {"image_seq_len": 4},
        {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>", **_ROWS},
    ),
    "idefics3": Recipe(
        "<image>",
        "<image>",
        {"model_type": "llama"},
        {"model_type": "idefics3", "patch_size": 8},
        {"image_processor_type": "Idefics3ImageProcessor", **_TILES},
        {"scale_factor": 2},
        {"image_seq_len": 4},
        {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>", **_ROWS},
    ),
    "gemma3": Recipe(
        "<start_of_image>",
        "<image_soft_token>",
        {
            "model_type": "gemma3_text",
            "num_hidden_layers": 3,
            "sliding_window_pattern": 3,
            "sliding_window": 512,
            "mm_tokens_per_image": 16,
            "query_pre_attn_scalar": 8,
        },
        {"model_type": "siglip_vision_model"},
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": EDGE, "width": EDGE},
            "do_pan_and_scan": False,
            **_NORMALIZED,
        },
        {"hidden_size": 32, "pad_token_id": 0},
        {"image_seq_length": 16},
        {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "pixtral": Recipe(
        "[IMG]",
        "[IMG]",
        {"model_type": "mistral"},
        {"model_type": "pixtral", "patch_size": 8, "image_size": 2 * EDGE},
        _PIXTRAL,
        {"vision_feature_layer": -1},
        {"patch_size": 8},
        _PIXTRAL_TOKENS,
    ),
    "mistral3": Recipe(
        "[IMG]",
        "[IMG]",
        {"model_type": "mistral", "rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"model_type": "pixtral", "patch_size": 4, "image_size": 2 * EDGE},
        _PIXTRAL | {"patch_size": {"height": 4, "width": 4}},
        {"vision_feature_layer": -1, "spatial_merge_size": 2},
        {"patch_size": 4, "spatial_merge_size": 2},
        _PIXTRAL_TOKENS,
    ),
    "llava": Recipe(
        "<image>",
        "<image>",
        {"model_type": "llama"},
        {"model_type": "clip_vision_model", "patch_size": 8},
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": EDGE},
            "crop_size": {"height": EDGE, "width": EDGE},
            **_NORMALIZED,
        },
        {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "lfm2_vl": Recipe(
        "<image>",
        "<image>",
        {
            "model_type": "lfm2",
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "full_attention", "conv", "full_attention"],
            "block_dim": 32,
            "conv_dim": 32,
            "conv_dim_out": 32,
            "block_multiple_of": 8,
            "norm_eps": 1e-5,
            "num_heads": 4,
        },
        {"model_type": "lfm2_vl", "num_patches": 64},
        {
            "image_processor_type": "Lfm2VlImageProcessorFast",
            "encoder_patch_size": 4,
            "tile_size": 16,
            "min_image_tokens": 4,
            "max_image_tokens": 4,
            "downsample_factor": 2,
            **_NORMALIZED,
        },
        {"downsample_factor": 2, "projector_hidden_size": 32, "encoder_patch_size": 4},
        {},
        {
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail": "<|img_thumbnail|>",
        },
    ),
    "qwen2_vl": Recipe(
        _QWEN_PLACEHOLDER,
        "<|image_pad|>",
        _QWEN_TEXT,
        {"model_type": "qwen2_vl", "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, **_QWEN_VISION},
        _QWEN_IMAGES,
        {**_TEXT, **_QWEN_TEXT},
        {},
        _QWEN_TOKENS,
    ),
    "qwen2_5_vl": Recipe(
        _QWEN_PLACEHOLDER,
        "<|image_pad|>",
        _QWEN_TEXT,
        {
            "model_type": "qwen2_5_vl",
            "out_hidden_size": 32,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
            **_QWEN_VISION,
        },
        _QWEN_IMAGES,
        {**_TEXT, **_QWEN_TEXT},
        {},
        _QWEN_TOKENS,
    ),
    "qwen3_vl": Recipe(
        _QWEN_PLACEHOLDER,
        "<|image_pad|>",
        {"model_type": "qwen3_vl", **_QWEN_TEXT},
        {
            "model_type": "qwen3_vl",
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            **_QWEN_VISION,
        },
        _QWEN_IMAGES,
        {},
        {},
        _QWEN_TOKENS,
    ),
}


class Format(NamedTuple):
    """The numbers of weights.

    Attributes:
        dtype: the type of those that are not quantized.
        bits: those of the language model; None if it is not quantized. The vision tower never is, as in most files.
    """

    dtype: mx.Dtype = mx.float32
    bits: int | None = None


DEFAULT_FORMAT = Format()


def tiny_vision_model(
    family: str, folder: Path, tokenizer: Path, *, seed: int = 0, number_format: Format = DEFAULT_FORMAT
) -> Path:
    """Create a model of a family.

    Args:
        family: its `model_type`.
        folder: where to write the model. Created if it does not exist.
        tokenizer: a folder with a tokenizer to which the tokens for images are added.
        seed: seed of the weights.
        number_format: the format of the weights.
    """
    recipe = RECIPES[family]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder, tokenizer, recipe)
    config: dict[str, Any] = {
        "model_type": family,
        "text_config": {**_TEXT, "vocab_size": len(vocabulary), **recipe.text},
        "vision_config": {**_VISION, **recipe.vision},
        "image_token_id": vocabulary[recipe.token],
        "image_token_index": vocabulary[recipe.token],
        "vocab_size": len(vocabulary),
        "eos_token_id": vocabulary[END],
        **{f"{name}_id": vocabulary[text] for name, text in recipe.specials.items()},
        **recipe.config,
    }
    if number_format.bits is not None:
        config["quantization"] = {"group_size": _GROUP_SIZE, "bits": number_format.bits}
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", recipe.images)
    _write(folder / "processor_config.json", dict(recipe.processor))
    network, settings = model_classes(config)
    mx.random.seed(seed)
    model = network(settings.from_dict(config))
    model.update(tree_map_with_path(_randomize, model.parameters()))
    model.set_dtype(number_format.dtype)
    if number_format.bits is not None:
        nn.quantize(model, _GROUP_SIZE, number_format.bits, class_predicate=_is_text_part)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return folder


def _is_text_part(name: str, module: nn.Module) -> bool:
    # mlx_vlm takes weights of other sizes for unquantized ones.
    divisible = hasattr(module, "to_quantized") and not module.weight.size % _QUANTIZED_MULTIPLE
    return divisible and "language_model" in name


def _randomize(name: str, weights: mx.array) -> mx.array:
    if weights.ndim < 2:  # norms and biases
        return weights * (_SCALE if name.endswith(_ATTENTION_NORMS) else 1)
    fan_in = weights.size // weights.shape[0]
    scale = _EMBEDDING_SCALE if "embed_tokens" in name else _SCALE
    return mx.random.normal(weights.shape) * scale / fan_in**0.5


def _write_tokenizer(folder: Path, source: Path, recipe: Recipe) -> dict[str, int]:
    names = {"image_token": recipe.token, **recipe.specials}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(source), extra_special_tokens=names)
    texts = dict.fromkeys(names.values())
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    tokenizer.chat_template = _TEMPLATE.replace("PLACEHOLDER", recipe.placeholder)
    tokenizer.save_pretrained(str(folder))
    return dict(tokenizer.get_vocab())


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document))
