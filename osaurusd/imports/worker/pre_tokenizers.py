"""Pre-tokenizers of byte-level BPE vocabularies, by the name in `tokenizer.ggml.pre`.

The names and their meaning are llama.cpp's (src/llama-vocab.cpp). The patterns are those of the tokenizers that the
models were published with, which use the same regular expression engine.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from osaurusd.imports.worker.metadata import Metadata


@dataclass(frozen=True)
class PreTokenizerConfig:
    """How to split text into words.

    Attributes:
        patterns: applied in order, each to the parts that the previous one produces.
        digits: split off every digit first.
        gpt2: apply GPT-2's pattern last.
        ignore_merges: a word that is a token is not built from merges.
        nfc: normalize text to Unicode NFC first.
        add_bos: add the BOS token if the file does not specify it.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False

    def build(self) -> PreTokenizer:
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.digits else []
        steps += [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=self.gpt2)])


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}|{_REST}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_LIKE_LLAMA3 = PreTokenizerConfig((_LLAMA3,), ignore_merges=True, add_bos=True)
_LIKE_QWEN2 = PreTokenizerConfig((_QWEN2,), nfc=True)
_LIKE_STARCODER = PreTokenizerConfig(digits=True, gpt2=True)

_PRE_TOKENIZERS = {
    "default": PreTokenizerConfig((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizerConfig((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "deepseek-r1-qwen": _LIKE_QWEN2,
    "falcon3": _LIKE_LLAMA3,
    "gpt-2": PreTokenizerConfig(gpt2=True),
    "llama-bpe": _LIKE_LLAMA3,
    "llama-v3": _LIKE_LLAMA3,
    "llama3": _LIKE_LLAMA3,
    "midm-2.0": _LIKE_LLAMA3,
    "minerva-7b": _LIKE_STARCODER,
    "qwen2": _LIKE_QWEN2,
    "smaug-bpe": PreTokenizerConfig((_LLAMA3,)),
    "smollm": _LIKE_STARCODER,
    "starcoder": _LIKE_STARCODER,
    "tekken": PreTokenizerConfig((_TEKKEN,), ignore_merges=True, add_bos=True),
}


def find_pre_tokenizer(metadata: Metadata) -> PreTokenizerConfig:
    """Return the pre-tokenizer that `tokenizer.ggml.pre` names. Old files without the key use llama.cpp's default.

    Raises:
        ImportFailed: the name is unknown.
    """
    name = metadata.find_text("tokenizer.ggml.pre") or "default"
    if name not in _PRE_TOKENIZERS:
        raise metadata.failure(f"the pre-tokenizer {name!r} is not supported; supported: {', '.join(_PRE_TOKENIZERS)}")
    return _PRE_TOKENIZERS[name]
