"""How byte-level BPE vocabularies cut text into words before they merge: by the name in `tokenizer.ggml.pre`.

The names and what they stand for are llama.cpp's (src/llama-vocab.cpp); the patterns come from the tokenizers that the
models were published with, whose engine this is.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from osaurusd.imports.worker.metadata import Metadata


@dataclass(frozen=True)
class Splitting:
    """A way to cut text.

    `patterns` are applied one after the other, each within the pieces that the one before left; `gpt2` says that
    GPT-2's own pattern follows, `digits` that every digit is cut off first. `whole_words`: a piece that is a token is
    not built from merges. `compose`: text is brought into Unicode's form NFC first. `add_bos`: what holds where the
    file does not say.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    whole_words: bool = False
    add_bos: bool = False
    compose: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.digits else []
        steps += [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=self.gpt2)])


_ENGLISH_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_ENGLISH_ENDINGS}|{_WORD}|\\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = f"{_ENGLISH_ENDINGS}|{_WORD}|\\p{{N}}|{_REST}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_LIKE_LLAMA3 = Splitting((_LLAMA3,), whole_words=True, add_bos=True)
_LIKE_QWEN2 = Splitting((_QWEN2,), compose=True)
_LIKE_STARCODER = Splitting(digits=True, gpt2=True)

_SPLITTINGS = {
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "deepseek-r1-qwen": _LIKE_QWEN2,
    "falcon3": _LIKE_LLAMA3,
    "gpt-2": Splitting(gpt2=True),
    "llama-bpe": _LIKE_LLAMA3,
    "llama-v3": _LIKE_LLAMA3,
    "llama3": _LIKE_LLAMA3,
    "midm-2.0": _LIKE_LLAMA3,
    "minerva-7b": _LIKE_STARCODER,
    "qwen2": _LIKE_QWEN2,
    "smaug-bpe": Splitting((_LLAMA3,)),
    "smollm": _LIKE_STARCODER,
    "starcoder": _LIKE_STARCODER,
    "tekken": Splitting((_TEKKEN,), whole_words=True, add_bos=True),
}


def splitting(metadata: Metadata) -> Splitting:
    """The way to cut text that `tokenizer.ggml.pre` names; llama.cpp's default for old files, which have no such key.

    Raises:
        ImportFailed: the name is not known here.
    """
    name = metadata.find_text("tokenizer.ggml.pre") or "default"
    if name not in _SPLITTINGS:
        raise metadata.failure(f"its pre-tokenizer {name!r} is not supported; supported are {', '.join(_SPLITTINGS)}")
    return _SPLITTINGS[name]
