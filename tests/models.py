"""Models for tests: tiny random weights of any architecture, with a real tokenizer."""

import contextlib
import importlib
import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten

from tests import daemons
from tests.daemons import Daemon

TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

TINY_VOCABULARY = 4096

NO_END_TOKEN = 2**20
"""As `eos_token_id`, it lets outputs reach `max_tokens`: no token has this id."""

REASONING_MARKERS = {"<repo_name>": "<think>", "<reponame>": "</think>"}
"""Tokens that SmolLM2 does not use. Renamed with `rename_tokens`, they become reasoning markers."""


def make_tokenizer(folder: Path, source: Path) -> Path:
    """Write the tokenizer and chat template of a model, with the most frequent `TINY_VOCABULARY` tokens only.

    It loads ten times as fast, and so do models that use it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < TINY_VOCABULARY}
    model["merges"] = [merge for merge in model["merges"] if {*merge, "".join(merge)} <= model["vocab"].keys()]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"vocab_size": TINY_VOCABULARY}))
    return folder


def make_tiny(
    folder: Path,
    tokenizer: Path,
    *,
    template: str | None = "chatml",
    seed: int = 0,
    group_size: int | None = None,
    **config: Any,
) -> Path:
    """Create a model with random weights.

    Args:
        folder: where to write the model. Created if it does not exist.
        tokenizer: a model folder from which the tokenizer and the size of the vocabulary are copied.
        template: `chatml` for the chat template of that model, None for no template, or a Jinja template.
        seed: seed of the weights.
        group_size: group size for weights quantized to 4 bits, as `mlx_lm.convert` writes them. None: full precision.
        config: keys of config.json that differ from those of a tiny Llama.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    settings = {**TINY_LLAMA, "vocab_size": vocab_size, **config}
    module = importlib.import_module(f"mlx_lm.models.{settings['model_type']}")
    mx.random.seed(seed)
    network = module.Model(module.ModelArgs.from_dict(settings))
    if group_size is not None:
        network.set_dtype(mx.bfloat16)
        quantize(network, group_size=group_size, bits=4)
        quantization = {"group_size": group_size, "bits": 4, "mode": "affine"}
        settings |= {"quantization": quantization, "quantization_config": quantization}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(settings))
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    if template == "chatml":
        shutil.copyfile(tokenizer / "chat_template.jinja", folder / "chat_template.jinja")
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def split_files(folder: Path) -> None:
    """Split the weights of a model into a file for each layer, such as `model-0.safetensors`, and one for the rest."""
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    parts: dict[str, dict[str, mx.array]] = {}
    for name, weight in weights.items():
        number = name.split(".")[2] if ".layers." in name else "rest"
        parts.setdefault(f"model-{number}.safetensors", {})[name] = weight
    for file, part in parts.items():
        mx.save_safetensors(str(folder / file), part, {"format": "mlx"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def skip_without_mlx_vlm() -> None:
    """Skip the module of tests if mlx-vlm is not installed.

    `pytest.importorskip` would import it, and all of transformers: a second in each process that collects tests.
    """
    if find_spec("mlx_vlm") is None:
        pytest.skip("mlx-vlm is not installed", allow_module_level=True)


@contextlib.contextmanager
def running_tiny(home: Path, tokenizer: Path, configuration: str, **config: Any) -> Iterator[Daemon]:
    """Run a daemon with this configuration file, and with a model `tiny` that is loaded.

    Args:
        home: the home directory of the daemon.
        tokenizer, config: as for `make_tiny`.
        configuration: the content of config.toml.
    """
    make_tiny(home / "models" / "tiny", tokenizer, **config)
    (home / "config.toml").write_text(configuration)
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/load", {"model": "tiny"})
        yield daemon


def rename_tokens(folder: Path, names: Mapping[str, str]) -> None:
    """Rename tokens of the tokenizer in a model folder."""
    for file in TOKENIZER_FILES:
        text = (folder / file).read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        (folder / file).write_text(text)
