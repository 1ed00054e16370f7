"""Imported tokenizers encode multilingual text as the published ones do."""

import base64
import itertools
import json

import pytest
import regex  # type: ignore[import-untyped]  # it has no stubs; transformers requires it
import sentencepiece
from tokenizers import Tokenizer

from osaurusd.imports.worker import tokenizer as tokenizer_module
from osaurusd.imports.worker import vocabulary as vocabulary_module
from osaurusd.imports.worker.metadata import Metadata
from osaurusd.imports.worker.tokenizer import write_tokenizer
from osaurusd.imports.worker.vocabulary import read_vocabulary
from tests import published_tokenizers

from .gguf_writer import byte_characters

pytestmark = pytest.mark.long

CORPUS = [
    "The quick brown fox can't jump over 1,234,567.89 lazy dogs!",
    "Größe, naïveté, coöperation, Ærøskøbing, İstanbul, Œuvre",
    "Съешь же ещё этих мягких французских булок",
    "日本語のテキストと中文文本、以及한국어 문장。",
    "नमस्ते दुनिया, สวัสดีชาวโลก, مرحبا بالعالم, שלום עולם",
    "def f(x):\n\treturn {'a': x[1:], \"b\": x**2}  # done\r\n\r\n    pass",
    "emoji 🦖👨‍👩‍👧🇫🇷 and math ∑∫√π ≠ ≤",
    "  leading and trailing   spaces  ",
    "HTTPServer parseJSONResponse snake_case kebab-case CamelCase",
    "",
]


def build(keys, dest):
    prefixed = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    metadata = Metadata("x.gguf", {**prefixed, "general.architecture": "llama", "llama.context_length": 8})
    write_tokenizer(read_vocabulary(metadata), metadata, dest)
    return Tokenizer.from_file(str(dest / "tokenizer.json"))


@pytest.mark.parametrize("text", CORPUS)
def test_sentence_piece_tokenizer_of_mistral(mistral, text):
    processor, tokenizer = mistral

    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert ids == processor.encode(text)
    assert tokenizer.decode(ids) == processor.decode(ids)


@pytest.fixture(scope="module", autouse=True)
def _limits():
    """Lower the limits of vocabularies to a quarter: published ones are far below them."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (vocabulary_module, "MAX_TOKEN_LENGTH"),
            (vocabulary_module, "MAX_TOKENS"),
            (vocabulary_module, "MAX_ADDED_LENGTH"),
            (vocabulary_module, "MAX_SQUARED_LENGTHS"),
            (tokenizer_module, "MAX_MERGES"),
        ):
            patch.setattr(module, name, getattr(module, name) // 4)
        yield


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    path = published_tokenizers.fetch(published_tokenizers.SENTENCE_PIECE)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(processor.get_piece_size())
    types = [
        2 if processor.is_unknown(index) else 3 if processor.is_control(index) else 6 if processor.is_byte(index) else 1
        for index in ids
    ]
    keys = {
        "model": "llama",
        "tokens": [processor.id_to_piece(index) for index in ids],
        "scores": [processor.get_score(index) for index in ids],
        "token_type": types,
    }
    return processor, build(keys, tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def nemo(tmp_path_factory):
    published = json.loads(published_tokenizers.fetch(published_tokenizers.TEKKEN).read_text())
    count = published["config"]["default_vocab_size"] - published["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in published["vocab"][:count]}
    characters = byte_characters()

    def spell(token):
        return "".join(characters[byte] for byte in token)

    # Pairs in the order of the tokens that they form, as llama.cpp's converter derives them.
    merges = [
        f"{spell(first)} {spell(second)}"
        for token in ranks
        if len(token) > 1
        for first, second in [merge(token, ranks, ranks[token])]
    ]
    keys = {
        "model": "gpt2",
        "pre": "tekken",
        "tokens": [spell(token) for token in ranks],
        "merges": merges,
    }
    return published["config"]["pattern"], ranks, build(keys, tmp_path_factory.mktemp("nemo"))


def merge(word, ranks, limit=None):
    """Merge the pair of lowest rank until there is none, or its rank is `limit`."""
    parts = [word[index : index + 1] for index in range(len(word))]
    while len(parts) > 1:
        pairs = [ranks.get(first + second, len(ranks)) for first, second in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest == len(ranks) or lowest == limit:
            break
        index = pairs.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


@pytest.mark.parametrize("text", CORPUS)
def test_tekken_tokenizer_of_mistral_nemo(nemo, text):
    pattern, ranks, tokenizer = nemo

    words = [word.encode() for word in regex.findall(pattern, text)]
    expected = [ranks[part] for word in words for part in ([word] if word in ranks else merge(word, ranks))]

    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == expected
    assert tokenizer.decode(ids) == text
