"""The folder of the test model, in the layout of Idefics 3 as it is published.

It consists of a language model, which is SmolLM2, and the vision tower and connector in `weights.safetensors`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model
from tokenizers import Tokenizer

from tests.vision_model import network

WEIGHTS = Path(__file__).with_name("weights.safetensors")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")

IMAGE_TOKEN, IMAGE_BORDER, GLOBAL_IMAGE = "<image>", "<fake_token_around_image>", "<global-img>"

ADDED_TOKENS = {IMAGE_TOKEN: "\n", IMAGE_BORDER: " |", GLOBAL_IMAGE: "Picture"}
"""Tokens that the tokenizer of SmolLM2 lacks, and those whose embeddings they have."""


def make_vision_model(folder: Path, source: Path, weights: Path = WEIGHTS) -> Path:
    """Write the test model.

    Args:
        folder: where to write it. Created if it does not exist.
        source: SmolLM2 as an MLX folder, quantized or not.
        weights: the vision tower and the connector.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, source)
    text = load_text_weights(source)
    vision = {f"model.{name}": value.astype(mx.float32) for name, value in mx.load(str(weights)).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), {**text, **vision}, {"format": "mlx"})
    write_json(folder / "config.json", build_config(source))
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": network.IMAGE_TOKENS}
    write_json(folder / "processor_config.json", processor)
    shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    return folder


def build_config(source: Path) -> dict[str, Any]:
    """Build config.json from that of the language model."""
    text = read_json(source / "config.json")
    special = {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vocabulary = text["vocab_size"] + len(ADDED_TOKENS)
    kept = {name: value for name, value in text.items() if not name.startswith("quantization")}
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "text_config": {**kept, "vocab_size": vocabulary, "tie_word_embeddings": False},
        "vision_config": network.VISION,
        "scale_factor": network.SCALE_FACTOR,
        "image_token_id": added_ids(source)[IMAGE_TOKEN],
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **special,
    }


PREPROCESSOR = {
    "image_processor_type": "Idefics3ImageProcessor",
    "processor_class": "Idefics3Processor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"longest_edge": network.IMAGE_EDGE},
    "resample": 1,
    "do_image_splitting": True,
    "max_image_size": {"longest_edge": network.IMAGE_EDGE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_pad": True,
}


def added_ids(source: Path) -> dict[str, int]:
    """Return the ids of the additional tokens, which follow those of the language model."""
    first = read_json(source / "config.json")["vocab_size"]
    return {token: first + number for number, token in enumerate(ADDED_TOKENS)}


def write_tokenizer(folder: Path, source: Path) -> None:
    """Write the tokenizer with the additional tokens."""
    tokenizer = read_json(source / "tokenizer.json")
    ids = added_ids(source)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": number, "content": token, **flags} for token, number in ids.items()]
    write_json(folder / "tokenizer.json", tokenizer)
    shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")


def load_text_weights(source: Path) -> dict[str, mx.array]:
    """Load the language model in float32, with rows for the additional tokens, which it never generates."""
    model, _ = load_model(source)
    model.set_dtype(mx.float32, lambda dtype: dtype in (mx.float16, mx.bfloat16))
    weights = dict(tree_flatten(dequantize_model(model).parameters()))
    embeddings = weights.pop("model.embed_tokens.weight")
    similar = mx.array([token for text in ADDED_TOKENS.values() for token in encode(source, text)])
    named = {name.replace("model.", "model.text_model.", 1): value for name, value in weights.items()}
    return {
        **named,
        "model.text_model.embed_tokens.weight": mx.concatenate([embeddings, embeddings[similar]]),
        "lm_head.weight": mx.concatenate([embeddings, mx.zeros((len(ADDED_TOKENS), embeddings.shape[1]))]),
    }


def encode(source: Path, text: str) -> list[int]:
    """Return the tokens of a text."""
    tokens: list[int] = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return tokens


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
