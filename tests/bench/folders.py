"""Makes the model folders that both servers load: `python -m tests.bench.folders MODELS`.

In a process of its own, so that the one that measures neither imports MLX nor holds weights.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model
from tokenizers import Tokenizer

from osaurusd.imports.worker.run import import_model
from tests import starter_model
from tests.bench import models
from tests.models import make_tiny

CONTEXT_TOKENS = 16384
WEIGHTS = "model.safetensors"

# A special token that no text has: with it as the only end token, answers go on until `max_tokens`.
NEVER = "<repo_name>"


def make(folder: Path) -> None:
    """Make all models, each in a folder of its name below `folder`."""
    starter = folder / models.STARTER
    starter.mkdir(parents=True)
    import_model(starter_model.fetch(), starter, lambda *_: None)
    _make_float32(starter, folder / models.SMOLLM.name)
    _make_endless(folder / models.SMOLLM.name)
    make_tiny(folder / models.TINY.name, starter, tie_word_embeddings=False, max_position_embeddings=CONTEXT_TOKENS)
    _make_readable(folder / models.TINY.name)
    _make_endless(folder / models.TINY.name)


def _make_float32(source: Path, target: Path) -> None:
    network, config = load_model(source)
    network.set_dtype(mx.float32, lambda dtype: dtype in (mx.float16, mx.bfloat16))
    network = dequantize_model(network)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS))
    mx.save_safetensors(str(target / WEIGHTS), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    kept = {key: value for key, value in config.items() if not key.startswith("quantization")}
    _write(target / "config.json", {**kept, "torch_dtype": "float32"})


def _make_endless(folder: Path) -> None:
    """Let nothing that the model would write end its answer."""
    token = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(NEVER)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            _write(folder / name, {**_read(folder / name), "eos_token_id": token})
    settings = folder / "tokenizer_config.json"
    _write(settings, {**_read(settings), "eos_token": NEVER})


def _make_readable(folder: Path) -> None:
    """Let a random model write words only: every token is then a chunk of its own, and none is the end token."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights: dict[str, Any] = dict(mx.load(str(folder / WEIGHTS)))
    head = weights["lm_head.weight"]
    words = [_is_word(tokenizer.decode([token])) for token in range(head.shape[0])]
    weights["lm_head.weight"] = mx.where(mx.array(words)[:, None], head, 0)
    mx.eval(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights, {"format": "mlx"})


def _is_word(text: str) -> bool:
    return text.isascii() and text.strip().isalpha()


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
