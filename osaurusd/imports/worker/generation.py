"""The sampling defaults and end tokens that a GGUF file brings along, as `generation_config.json` has them."""

from typing import Any

from osaurusd.imports.worker.metadata import Metadata, shortest_float32
from osaurusd.imports.worker.vocabulary import Vocabulary

# llama.cpp's names of them (gguf-py/gguf/constants.py).
_NUMBERS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def token_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """The ids of begin, end and padding; several ends are a list, as transformers and mlx_lm read it."""
    ids: dict[str, Any] = {}
    if vocabulary.bos is not None:
        ids["bos_token_id"] = vocabulary.bos
    if vocabulary.ends:
        ids["eos_token_id"] = vocabulary.ends[0] if len(vocabulary.ends) == 1 else vocabulary.ends
    if vocabulary.padding is not None:
        ids["pad_token_id"] = vocabulary.padding
    return ids


def generation_config(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, Any]:
    """What `generation_config.json` says: token ids, and the sampling that the model's makers recommend.

    Raises:
        ImportFailed: a recommendation is not a number; the message names the file and the key.
    """
    config = token_ids(vocabulary)
    for key, name in _NUMBERS.items():
        if (number := metadata.find_number(key)) is not None:
            config[name] = shortest_float32(number)
    if (top_k := metadata.find_integer("general.sampling.top_k")) is not None:
        config["top_k"] = top_k
    if "temperature" in config:
        config["do_sample"] = config["temperature"] > 0
    return config
