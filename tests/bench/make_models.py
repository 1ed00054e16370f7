"""Create the models of the benchmark: `python -m tests.bench.make_models MODELS_DIRECTORY [--images | --tiny]`.

With `--images`, create also the vision-language model; with `--tiny`, the tiny one only.

This is a process of its own so that the benchmark itself neither imports MLX nor holds weights.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model
from tokenizers import Tokenizer

from osaurusd.imports.worker.importer import import_model
from osaurusd.worker.runners.vision.network import model_classes
from tests import starter_model
from tests.bench import models
from tests.models import make_tiny
from tests.vision_model.folder import make_vision_model

CONTEXT_TOKENS = 16384
WEIGHTS = "model.safetensors"

TILE_TOKENS = 64
TILES = {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 256}}
TOWER = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "image_size": 256,
    "patch_size": 16,
}
"""A small tower with the tiles of SmolVLM: 17 for an image of 1,024 pixels."""

# A special token that models do not generate. As the only end-of-sequence token, it lets outputs reach `max_tokens`.
UNUSED_TOKEN = "<repo_name>"


def make_models(directory: Path) -> None:
    """Create each model in a subdirectory with its name."""
    starter, smollm = directory / models.STARTER, directory / models.SMOLLM.name
    starter.mkdir(parents=True)
    import_model(starter_model.fetch(), starter, lambda *_: None)
    write_float32_copy(starter, smollm)
    disable_end_of_sequence(smollm)
    make_tiny_llama(directory, starter)


def make_tiny_llama(directory: Path, starter: Path) -> None:
    """Create the tiny model, with the tokenizer of the starter model."""
    folder = directory / models.TINY.name
    make_tiny(folder, starter, tie_word_embeddings=False, max_position_embeddings=CONTEXT_TOKENS)
    restrict_to_words(folder)
    disable_end_of_sequence(folder)


def make_tiny_only(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as starter:
        import_model(starter_model.fetch(), Path(starter), lambda *_: None)
        make_tiny_llama(directory, Path(starter))


def make_vision(directory: Path) -> None:
    """Create the vision-language model: the starter model, and a vision tower with random weights."""
    folder = make_vision_model(directory / models.VISION.name, directory / models.STARTER)
    config = read_json(folder / "config.json")
    config["vision_config"] |= TOWER
    write_json(folder / "config.json", config)
    images = read_json(folder / "preprocessor_config.json")
    write_json(folder / "preprocessor_config.json", images | TILES)
    processor = read_json(folder / "processor_config.json")
    write_json(folder / "processor_config.json", processor | {"image_seq_len": TILE_TOKENS})
    network, settings = model_classes(config)
    mx.random.seed(0)
    random = dict(tree_flatten(network(settings.from_dict(config)).parameters()))
    vision = {f"model.{name}": value for name, value in random.items() if not name.startswith("language_model.")}
    weights: dict[str, Any] = dict(mx.load(str(folder / WEIGHTS)))
    mx.save_safetensors(str(folder / WEIGHTS), {**weights, **vision}, {"format": "mlx"})
    disable_end_of_sequence(folder)


def write_float32_copy(source: Path, target: Path) -> None:
    network, config = load_model(source)
    network.set_dtype(mx.float32, lambda dtype: dtype in (mx.float16, mx.bfloat16))
    network = dequantize_model(network)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS))
    mx.save_safetensors(str(target / WEIGHTS), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    remaining = {key: value for key, value in config.items() if not key.startswith("quantization")}
    write_json(target / "config.json", {**remaining, "torch_dtype": "float32"})


def disable_end_of_sequence(folder: Path) -> None:
    token = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(UNUSED_TOKEN)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            write_json(folder / name, {**read_json(folder / name), "eos_token_id": token})
    tokenizer_config = folder / "tokenizer_config.json"
    write_json(tokenizer_config, {**read_json(tokenizer_config), "eos_token": UNUSED_TOKEN})


def restrict_to_words(folder: Path) -> None:
    """Make a random model generate only tokens that are words, so that every token is a chunk of text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights: dict[str, Any] = dict(mx.load(str(folder / WEIGHTS)))
    head = weights["lm_head.weight"]
    mask = [is_word(tokenizer.decode([token])) for token in range(head.shape[0])]
    weights["lm_head.weight"] = mx.where(mx.array(mask)[:, None], head, 0)
    mx.eval(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights, {"format": "mlx"})


def is_word(text: str) -> bool:
    return text.isascii() and text.strip().isalpha()


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    if "--tiny" in sys.argv[2:]:
        make_tiny_only(Path(sys.argv[1]))
    else:
        make_models(Path(sys.argv[1]))
    if "--images" in sys.argv[2:]:
        make_vision(Path(sys.argv[1]))
