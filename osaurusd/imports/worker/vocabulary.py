"""The vocabulary of a GGUF file, and the generation config that follows from its metadata."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from osaurusd.imports.worker.metadata import Metadata, shortest_float32
from osaurusd.wire.errors import as_json

# tokenizer.ggml.token_type (llama.cpp's llama_token_type); 0 is "undefined", 6 "byte".
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5

# In characters. The longest real tokens are runs of a few hundred spaces.
MAX_TOKEN_LENGTH = 1024
# Four times as many as the largest real vocabulary has. Building a tokenizer takes about 3 kB of memory for each.
MAX_TOKENS = 1 << 20
# In characters, of all tokens that are found in texts before anything else. A million of them takes the tokenizer up to
# 4 s and 300 MB. Gemma 3 has about 0.1 million.
MAX_ADDED_LENGTH = 1 << 21
# The sum over ordinary SentencePiece tokens. Deriving their merges takes quadratic time in the length of each, up to
# 15 s in total. Real vocabularies have about 60 for each token: 16 million for the 262,144 tokens of Gemma 3.
MAX_SQUARED_LENGTHS = 1 << 28

# Control tokens that end an output in every model that has them. Many files declare only one of theirs.
_END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"),
    *("<|return|>", "<|call|>", "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),  # noqa: RUF001
)
# In the format of GPT-OSS, this token ends a message, and one of the others the output.
_END_OF_MESSAGE, _HARMONY_ENDS = "<|end|>", ("<|return|>", "<|call|>")

# llama.cpp's defaults for SentencePiece vocabularies: those of Llama 1.
_LLAMA_IDS = {"unknown": 0, "bos": 1, "eos": 2}

_TOKENS = "tokenizer.ggml.tokens"

# GGUF keys (gguf-py/gguf/constants.py) and their names in generation_config.json.
_SAMPLING_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and the special ids.

    Attributes:
        types, scores: one per token; `scores` is empty if the file has none.
        ends: all ids that end an output, `eos` first.
        add_bos, add_eos: None if the file leaves the choice to the tokenizer type.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    ends: list[int]
    add_bos: bool | None
    add_eos: bool | None

    @cached_property
    def ids(self) -> dict[str, int]:
        """The ids by token."""
        return {token: index for index, token in enumerate(self.tokens)}

    def token(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]

    def of_type(self, *types: int) -> list[str]:
        """Return the tokens of the given types, in the order of their ids."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def added(self) -> list[str]:
        """Return the tokens that are found in texts before anything else."""
        return self.of_type(CONTROL, UNKNOWN, USER_DEFINED)


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Read the vocabulary from the keys `tokenizer.ggml.*`.

    Raises:
        ImportFailed: keys are missing or inconsistent, or a limit is exceeded. The message names the file and the key.
    """
    model = metadata.text("tokenizer.ggml.model")
    tokens = _tokens(metadata)
    types = [int(kind) for kind in _per_token(metadata, "token_type", len(tokens)) or [NORMAL] * len(tokens)]
    defaults = _LLAMA_IDS if model == "llama" else {}

    def token_id(name: str) -> int | None:
        return _token_id(metadata, name, len(tokens), defaults.get(name))

    eos = token_id("eos")
    ends = [eos, token_id("eot"), token_id("eom"), *_end_ids(metadata, len(tokens))]
    control = [index for index, kind in enumerate(types) if kind == CONTROL]
    texts = {tokens[index] for index in control}
    excluded = {_END_OF_MESSAGE} if texts.issuperset(_HARMONY_ENDS) else set()
    ends += [index for index in control if tokens[index] in _END_TOKENS and tokens[index] not in excluded]
    vocabulary = Vocabulary(
        model=model,
        tokens=tokens,
        types=types,
        scores=_per_token(metadata, "scores", len(tokens)) or [],
        bos=token_id("bos"),
        eos=eos,
        unknown=token_id("unknown"),
        padding=token_id("padding"),
        ends=list(dict.fromkeys(end for end in ends if end is not None)),
        add_bos=metadata.find_flag("tokenizer.ggml.add_bos_token"),
        add_eos=metadata.find_flag("tokenizer.ggml.add_eos_token"),
    )
    _check_lengths(vocabulary, metadata)
    return vocabulary


def token_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the ids of the begin, end and padding tokens. Several end tokens are a list, as in transformers."""
    ids: dict[str, Any] = {}
    if vocabulary.bos is not None:
        ids["bos_token_id"] = vocabulary.bos
    if vocabulary.ends:
        ids["eos_token_id"] = vocabulary.ends[0] if len(vocabulary.ends) == 1 else vocabulary.ends
    if vocabulary.padding is not None:
        ids["pad_token_id"] = vocabulary.padding
    return ids


def generation_config(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of `generation_config.json`: token ids and recommended sampling parameters.

    Raises:
        ImportFailed: a recommended value is not a number. The message names the file and the key.
    """
    config = token_ids(vocabulary)
    for key, name in _SAMPLING_KEYS.items():
        if (number := metadata.find_number(key)) is not None:
            config[name] = shortest_float32(number)
    if (top_k := metadata.find_integer("general.sampling.top_k")) is not None:
        config["top_k"] = top_k
    if "temperature" in config:
        config["do_sample"] = config["temperature"] > 0
    return config


def _tokens(metadata: Metadata) -> list[str]:
    # Some files contain empty padding tokens. Each gets a unique name, because tokenizers look tokens up by text.
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(metadata.texts(_TOKENS))]
    if not tokens:
        raise metadata.failure("the vocabulary is empty")
    if len(tokens) > MAX_TOKENS:
        raise metadata.failure(f"the vocabulary has {len(tokens)} tokens, more than {MAX_TOKENS}")
    if (longest := max(map(len, tokens))) > MAX_TOKEN_LENGTH:
        raise metadata.failure(f"{_TOKENS} has a token of {longest} characters, more than {MAX_TOKEN_LENGTH}")
    if len(set(tokens)) < len(tokens):
        token = Counter(tokens).most_common(1)[0][0]
        raise metadata.failure(f"the token {as_json(token)} is duplicated in the vocabulary")
    return tokens


def _check_lengths(vocabulary: Vocabulary, metadata: Metadata) -> None:
    """Reject vocabularies whose tokenizer would take minutes or gigabytes to build."""
    added = sum(map(len, vocabulary.added()))
    if added > MAX_ADDED_LENGTH:
        raise metadata.failure(
            f"the control and user-defined tokens in {_TOKENS} have {added} characters, more than {MAX_ADDED_LENGTH}"
        )
    if vocabulary.model != "llama":
        return
    squared = sum(len(token) ** 2 for token in vocabulary.of_type(NORMAL))
    if squared > MAX_SQUARED_LENGTHS:
        raise metadata.failure(
            f"{_TOKENS} has too many long tokens: the sum of their squared lengths is {squared}, more than "
            f"{MAX_SQUARED_LENGTHS}"
        )


def _per_token(metadata: Metadata, name: str, count: int) -> list[float] | None:
    values = metadata.find_numbers(f"tokenizer.ggml.{name}")
    if values is not None and len(values) != count:
        raise metadata.failure(f"tokenizer.ggml.{name} has {len(values)} values for {count} tokens")
    return values


def _end_ids(metadata: Metadata, count: int) -> list[int]:
    """Return the ids that end an output. Ollama's converter copies them from `generation_config.json`."""
    key = "tokenizer.ggml.eos_token_ids"
    ids = metadata.find_numbers(key) or []
    for value in ids:
        if not (value.is_integer() and 0 <= value < count):
            raise metadata.failure(f"{key} contains {value:g}, but there are {count} tokens")
    return [int(value) for value in ids]


def _token_id(metadata: Metadata, name: str, count: int, default: int | None) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.find_integer(key)
    if value is None:
        return default if default is not None and default < count else None
    if not 0 <= value < count:
        raise metadata.failure(f"{key} is {value}, but there are {count} tokens")
    return value
