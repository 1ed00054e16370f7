"""The tokens of a GGUF file and what it says of them."""

from collections import Counter
from dataclasses import dataclass

from osaurusd.imports.worker.metadata import Metadata

# tokenizer.ggml.token_type (llama.cpp's llama_token_type); 0 is "undefined", 5 "unused", 6 "byte".
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

# The longest in use are runs of a few hundred spaces; deriving merges takes time with the square of the length.
MAX_TOKEN_LENGTH = 1024

# Control tokens that end an answer in every model that has them. Many files name only one of theirs in a key.
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>")

# What llama.cpp assumes of SentencePiece vocabularies that do not say: Llama 1's.
_LLAMA_IDS = {"unknown": 0, "bos": 1, "eos": 2}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and the ids with a meaning.

    `types` and `scores` are as long as `tokens`, `scores` is empty where the file has none. `ends` are all ids that end
    an answer, `eos` first. `add_bos` and `add_eos` are None where the file leaves it to the kind of tokenizer.
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

    def token(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]

    def of_type(self, *types: int) -> list[str]:
        """The tokens of the given types, by id."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """The vocabulary that the keys `tokenizer.ggml.*` describe.

    Raises:
        ImportFailed: keys are missing or contradict one another; the message names the file and the key.
    """
    model = metadata.text("tokenizer.ggml.model")
    tokens = _tokens(metadata)
    types = [int(kind) for kind in _per_token(metadata, "token_type", len(tokens)) or [NORMAL] * len(tokens)]
    defaults = _LLAMA_IDS if model == "llama" else {}

    def token_id(name: str) -> int | None:
        return _token_id(metadata, name, len(tokens), defaults.get(name))

    eos = token_id("eos")
    ends = [eos, token_id("eot"), token_id("eom")]
    control = [index for index, kind in enumerate(types) if kind == CONTROL]
    ends += [index for index in control if tokens[index] in _ENDS]
    return Vocabulary(
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


def _tokens(metadata: Metadata) -> list[str]:
    # Some files have empty tokens to fill up; each gets a name of its own, for a tokenizer finds tokens by their text.
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(metadata.texts("tokenizer.ggml.tokens"))]
    if not tokens:
        raise metadata.failure("its vocabulary is empty")
    if max(map(len, tokens)) > MAX_TOKEN_LENGTH:
        raise metadata.failure(f"its vocabulary has a token of more than {MAX_TOKEN_LENGTH} characters")
    token, times = Counter(tokens).most_common(1)[0]
    if times > 1:
        raise metadata.failure(f"its vocabulary has the token {token!r} more than once")
    return tokens


def _per_token(metadata: Metadata, name: str, count: int) -> list[float] | None:
    values = metadata.find_numbers(f"tokenizer.ggml.{name}")
    if values is not None and len(values) != count:
        raise metadata.failure(f"tokenizer.ggml.{name} has {len(values)} values for {count} tokens")
    return values


def _token_id(metadata: Metadata, name: str, count: int, default: int | None) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.find_integer(key)
    if value is None:
        return default if default is not None and default < count else None
    if not 0 <= value < count:
        raise metadata.failure(f"{key} is {value}, and there are {count} tokens")
    return value
