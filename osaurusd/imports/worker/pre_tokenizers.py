"""Pre-tokenizers of byte-level BPE vocabularies, by the name in `tokenizer.ggml.pre`.

The names and their meaning are llama.cpp's (src/llama-vocab.cpp). The patterns are those of the tokenizers that the
models were published with, which use the same regular expression engine.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from osaurusd.imports.worker.metadata import Metadata
from osaurusd.wire.errors import as_json


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
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_WORD = _BEFORE + r"\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_LLAMA3 = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}|{_REST}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Words in which capital letters start a new one.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD, _UPPER_WORD = f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_TEKKEN = f"{_LOWER_WORD}|{_UPPER_WORD}|\\p{{N}}|{_SLASHES}"
_CASED = f"{_LOWER_WORD}{_CONTRACTIONS}?|{_UPPER_WORD}{_CONTRACTIONS}?"
_GPT4O = f"{_CASED}|\\p{{N}}{{1,3}}|{_SLASHES}"

_CJK = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
# The letters of DeepSeek LLM's pattern are those with a case.
_CASED_LETTERS = r"[\p{Lu}\p{Ll}\p{Lt}]+"
_BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001
_KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}|" + _REST
)
_YOUTU = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-\u309f\u30a0-\u30ff]+"  # noqa: RUF001
_AFMOE_CJK = (
    "[一-鿿㐀-䶿豈-\ufaff\u3040-\u309f\u30a0-\u30ff･-ﾟ⼀-⿟\u0e00-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f"
    "\uaa60-\uaa7f\ua9e0-\ua9ff가-\ud7af\u1100-\u11ff]+"
)

_EMBEDDING_MODELS = (
    *("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "modern-bert", "roberta-bpe"),
)

_LIKE_GPT2 = PreTokenizerConfig(gpt2=True)
_LIKE_LLAMA3 = PreTokenizerConfig((_LLAMA3,), ignore_merges=True, add_bos=True)
_LLAMA3_MERGES = PreTokenizerConfig((_LLAMA3,))
_LIKE_QWEN2 = PreTokenizerConfig((_QWEN2,), nfc=True)
_QWEN2_PLAIN = PreTokenizerConfig((_QWEN2,))
_LIKE_STARCODER = PreTokenizerConfig(digits=True, gpt2=True)
_LIKE_GPT4O = PreTokenizerConfig((_GPT4O,))
_LIKE_BLOOM = PreTokenizerConfig((_BLOOM,))
_LIKE_DEEPSEEK3 = PreTokenizerConfig((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))
_BAILING = PreTokenizerConfig(
    (
        f"'(?i:[sdmt]|ll|ve|re)|{_BEFORE}+\\p{{L}}+|\\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_TINY_AYA = PreTokenizerConfig((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))

PRE_TOKENIZERS = {
    "default": PreTokenizerConfig((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "a.x-4.0": _LIKE_GPT2,
    "afmoe": PreTokenizerConfig((r"\d{1,3}(?=(?:\d{3})*\b)", _AFMOE_CJK, _DEEPSEEK3)),
    "bailingmoe": _BAILING,
    "bailingmoe2": _BAILING,
    "bloom": _LIKE_BLOOM,
    "chameleon": PreTokenizerConfig(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
        ),
        gpt2=True,
        add_bos=True,
    ),
    "chatglm-bpe": _LLAMA3_MERGES,
    "codeshell": _LIKE_STARCODER,
    "cohere2moe": _TINY_AYA,
    "command-r": PreTokenizerConfig(digits=True, gpt2=True, nfc=True),
    "dbrx": _LLAMA3_MERGES,
    "deepseek-coder": PreTokenizerConfig((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "deepseek-llm": PreTokenizerConfig(
        (
            r"[\r\n]",
            r"\s?" + _CASED_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",  # noqa: RUF001
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-r1-qwen": _LIKE_QWEN2,
    "deepseek-v3": _LIKE_DEEPSEEK3,
    "exaone": _LIKE_STARCODER,
    "exaone-moe": PreTokenizerConfig(
        (
            f"{_CONTRACTIONS}|{_BEFORE}(?:\\p{{L}}\\p{{M}}*(?: \\p{{L}}\\p{{M}}*)*)+|\\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "exaone4": _LIKE_GPT2,
    "f2llmv2": _LIKE_QWEN2,
    "falcon": PreTokenizerConfig((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "falcon-h1": _LIKE_LLAMA3,
    "falcon3": _LIKE_LLAMA3,
    "gigachat": _LIKE_GPT2,
    "glm4": _LLAMA3_MERGES,
    "gpt-2": _LIKE_GPT2,
    "gpt-4o": _LIKE_GPT4O,
    "gpt3-finnish": _LIKE_BLOOM,
    "granite-docling": _LIKE_GPT2,
    "grok-2": _QWEN2_PLAIN,
    "hunyuan": _QWEN2_PLAIN,
    "hunyuan-dense": _LIKE_DEEPSEEK3,
    "hy_v4": _LIKE_DEEPSEEK3,
    "jais": _LIKE_GPT2,
    "jais-2": PreTokenizerConfig(
        (
            f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|"
            + "|".join(f"\\s{{{count}}}(?!\\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
            + r"|\s{1}",
        )
    ),
    "joyai-llm": _LIKE_DEEPSEEK3,
    "kanana2": _LIKE_GPT4O,
    "kimi-k2": PreTokenizerConfig((_KIMI,)),
    "kormo": _LIKE_QWEN2,
    "laguna": PreTokenizerConfig((r"[^\n]+|[\n]+", _QWEN2)),
    "lfm2": _LIKE_LLAMA3,
    "llada-moe": _BAILING,
    "llama-bpe": _LIKE_LLAMA3,
    "llama-v3": _LIKE_LLAMA3,
    "llama3": _LIKE_LLAMA3,
    "llama4": _LIKE_GPT4O,
    "megrez": _LIKE_QWEN2,
    "mellum": _LIKE_GPT2,
    "mellum2": _LIKE_STARCODER,
    "midm-2.0": _LIKE_LLAMA3,
    "minerva-7b": _LIKE_STARCODER,
    "minicpm5": PreTokenizerConfig((r"\p{N}{1,3}", f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}+|{_REST}"), ignore_merges=True),
    "minimax-m2": _LIKE_GPT4O,
    "mpt": _LIKE_GPT2,
    "olmo": _LIKE_GPT2,
    "phi-2": _LIKE_GPT2,
    "pixtral": _LIKE_LLAMA3,
    "poro-chat": _LIKE_BLOOM,
    "qwen2": _LIKE_QWEN2,
    "qwen35": PreTokenizerConfig(
        (
            f"{_CONTRACTIONS}|{_BEFORE}[\\p{{L}}\\p{{M}}]+|\\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,
        ),
        nfc=True,
    ),
    "refact": _LIKE_STARCODER,
    "seed-coder": PreTokenizerConfig((f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}| ?[^\\s\\p{{L}}\\p{{N}}\\r\\n]+|{_SPACES}",)),
    "smaug-bpe": _LLAMA3_MERGES,
    "smollm": _LIKE_STARCODER,
    "solar-open": _QWEN2_PLAIN,
    "spark2_5": PreTokenizerConfig(
        (
            r"\p{N}{1,3}",
            _CJK,
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "stablelm2": _QWEN2_PLAIN,
    "starcoder": _LIKE_STARCODER,
    "superbpe": PreTokenizerConfig((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "talkie": _LIKE_GPT4O,
    "tekken": PreTokenizerConfig((_TEKKEN,), ignore_merges=True, add_bos=True),
    "tiny_aya": _TINY_AYA,
    "trillion": _LIKE_GPT2,
    "ufakzeka": PreTokenizerConfig((f"{_WORD}|\\p{{N}}|{_REST}",)),
    "viking": PreTokenizerConfig((_BLOOM, r"\p{N}")),
    **dict.fromkeys(_EMBEDDING_MODELS, _LIKE_GPT2),
    "youtu": PreTokenizerConfig((_YOUTU, f"{_CASED}|\\p{{N}}|{_SLASHES}"), ignore_merges=True),
}


def find_pre_tokenizer(metadata: Metadata) -> PreTokenizerConfig:
    """Return the pre-tokenizer that `tokenizer.ggml.pre` names. Old files without the key use llama.cpp's default.

    Raises:
        ImportFailed: the name is unknown.
    """
    name = metadata.find_text("tokenizer.ggml.pre") or "default"
    if name not in PRE_TOKENIZERS:
        raise metadata.failure(
            f"the pre-tokenizer {as_json(name)} is not supported; supported: {', '.join(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[name]
