import io
import json
import random
import re
from pathlib import Path

import pytest
import sentencepiece
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import tokenizer as tokenizer_module
from osaurusd.imports.worker.pre_tokenizers import PRE_TOKENIZERS
from osaurusd.imports.worker.vocabulary import CONTROL, NORMAL, USER_DEFINED

from .gguf_writer import TinyLlama, byte_level_tokenizer, sentence_piece_tokenizer

TEXTS = [
    "The capital of France is Paris.",
    "  two  spaces, trailing ",
    "line\n\nline\r\n\ttab\n",
    "12345 and 3.14159e-10",
    "naïve café, 日本語, Ünïcödé",
    "emoji 🦖👨‍👩‍👧🇫🇷!",
    "def f(x):\n    return x[1:] + '\\n'  # done",
]


@pytest.fixture(scope="session")
def smollm_tokenizer(smollm):
    return AutoTokenizer.from_pretrained(smollm)


@pytest.fixture
def tokenizer_of(tmp_path, convert):
    """Imports a tiny Llama with a vocabulary and returns the tokenizer that transformers loads."""

    def tokenizer_of(vocabulary, **metadata):
        return AutoTokenizer.from_pretrained(
            convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf", metadata=metadata))
        )

    return tokenizer_of


def stream_text(detokenizer, ids):
    for token in ids:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return detokenizer.text


# SmolLM2's byte-level vocabulary


@pytest.mark.parametrize("text", TEXTS)
def test_smollm_round_trips_text(smollm_tokenizer, text):
    ids = smollm_tokenizer.encode(text)

    assert smollm_tokenizer.is_fast
    assert smollm_tokenizer.decode(ids) == text


def test_smollm_has_a_token_for_each_digit(smollm_tokenizer):
    ids = smollm_tokenizer.encode("12345")

    assert smollm_tokenizer.convert_ids_to_tokens(ids) == ["1", "2", "3", "4", "5"]


def test_smollm_has_its_special_tokens(smollm_tokenizer):
    text = "<|im_start|>user\nhi<|im_end|>"

    ids = smollm_tokenizer.encode(text)

    assert (ids[0], ids[-1]) == (1, 2)
    assert smollm_tokenizer.decode(ids) == text
    assert smollm_tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi"
    assert (smollm_tokenizer.bos_token_id, smollm_tokenizer.eos_token_id, smollm_tokenizer.pad_token_id) == (1, 2, 2)


def test_smollm_keeps_every_id(smollm, smollm_tokenizer):
    assert len(smollm_tokenizer) == 49152
    assert json.loads((smollm / "config.json").read_text())["vocab_size"] == 49152


def test_smollm_is_stored_as_the_library_stores_it(smollm):
    stored = (smollm / "tokenizer.json").read_text()

    assert json.loads(Tokenizer.from_str(stored).to_str()) == json.loads(stored)


def test_smollm_chat_template_is_stored_once(smollm, smollm_tokenizer):
    rendered = smollm_tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        tokenize=False,
        add_generation_prompt=True,
    )

    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "chat_template" not in json.loads((smollm / "tokenizer_config.json").read_text())


def test_smollm_streams_with_the_fast_detokenizer(smollm):
    tokenizer = load_tokenizer(smollm, eos_token_ids=[0, 2])

    assert tokenizer.eos_token_ids == {0, 2}
    for text in TEXTS:
        detokenizer = tokenizer.detokenizer
        assert isinstance(detokenizer, BPEStreamingDetokenizer)
        # This class drops one leading space of the text.
        assert stream_text(detokenizer, tokenizer.encode(text)) == text.removeprefix(" ")


# Byte-level vocabularies


def test_merges_are_applied_in_order(tokenizer_of):
    tokenizer = tokenizer_of(byte_level_tokenizer("gpt-2"))

    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("hello w1234\n\n<tool>!"))

    assert tokens == ["hello", "Ġw", "12", "3", "4", "ĊĊ", "<tool>", "!"]


def test_first_of_repeated_merges_counts(tokenizer_of):
    """As in llama.cpp."""
    metadata = byte_level_tokenizer(merges=["h e", "e l", "h e"])
    metadata["tokenizer.ggml.tokens"].append("el")
    metadata["tokenizer.ggml.token_type"].append(1)
    tokenizer = tokenizer_of(metadata)

    assert ["he", "l"] == tokenizer.convert_ids_to_tokens(tokenizer.encode("hel"))


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a12 b\n\nc", ["a", "1", "2", " b", "\n", "\n", "c"]),
        ("starcoder", "x1", ["x", "1"]),
        ("gpt-2", "it's 1234  ok", ["it", "'s", " 1234", " ", " ok"]),
        ("llama-bpe", "IT'S 12345\n\n ok", ["IT", "'S", " ", "123", "45", "\n\n", " ok"]),
        ("llama3", "(abc)def", ["(abc", ")def"]),
        ("qwen2", "a 12", ["a", " ", "1", "2"]),
        ("tekken", "HelloWorld 12 a/b\n", ["Hello", "World", " ", "1", "2", " a", "/b", "\n"]),
        ("command-r", "x12 y", ["x", "1", "2", " y"]),
        ("deepseek-v3", "Hi 12345 日本x", ["Hi", " ", "123", "45", " ", "日本", "x"]),
        ("gpt-4o", "HelloWorld's 1234\n", ["Hello", "World's", " ", "123", "4", "\n"]),
        ("glm4", "a 1234", ["a", " ", "123", "4"]),
        ("dbrx", "a 1234", ["a", " ", "123", "4"]),
        ("deepseek-coder", "if x1:\n日本", ["if", " x", "1", ":", "\n", "日本"]),
        ("default", "a 12345, b", ["a", " ", "123", "45", ",", " b"]),
    ],
)
def test_text_is_split_as_in_training(tokenizer_of, pre, text, pieces):
    tokenizer = tokenizer_of(byte_level_tokenizer(pre))

    spans = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)

    assert [text[start:end] for _, (start, end) in spans] == pieces
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_pre_tokenizer_preserves_multilingual_text():
    text = (
        "".join(TEXTS) + "Hello, WORLD's 1234567 + (x)  \n\n\t日本語テスト हिन्दी école 서울 ไทย Привет <|x|>\r\n  end  "
    )
    for name, config in PRE_TOKENIZERS.items():
        pieces = config.build().pre_tokenize_str(text)
        assert "".join(text[start:end] for _, (start, end) in pieces) == text, name


def test_named_chat_templates_are_kept(tokenizer_of, dest):
    templates = {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_templates": ["tool_use", "rag"],
        "tokenizer.chat_template.tool_use": "with tools",
        "tokenizer.chat_template.rag": "with documents",
    }

    tokenizer = tokenizer_of(byte_level_tokenizer() | templates)

    assert tokenizer.chat_template == {"default": "plain", "tool_use": "with tools", "rag": "with documents"}
    assert tokenizer.get_chat_template(tools=[{}]) == "with tools"
    assert not (dest / "chat_template.jinja").exists()


def test_llama3_encodes_a_word_in_the_vocabulary_as_one_token(tokenizer_of):
    """No sequence of merges yields this token."""
    vocabulary = byte_level_tokenizer("llama-bpe")
    vocabulary["tokenizer.ggml.tokens"] += ["xyz"]
    vocabulary["tokenizer.ggml.token_type"] += [1]

    tokenizer = tokenizer_of(vocabulary)

    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("xyz")) == ["<|im_start|>", "xyz"]


def test_special_tokens_may_have_characters_outside_the_byte_alphabet(tokenizer_of):
    end = "<\uff5cend▁of▁sentence\uff5c>"
    vocabulary = byte_level_tokenizer()
    vocabulary["tokenizer.ggml.tokens"][0] = end

    tokenizer = tokenizer_of(vocabulary)

    assert tokenizer.encode(f"a{end}")[-1] == 0
    assert tokenizer.decode([0]) == end
    assert len(tokenizer) == len(vocabulary["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
    ("pre", "flags", "expected"),
    [
        ("smollm", {}, ["a"]),
        ("smollm", {"add_bos_token": True}, ["<|im_start|>", "a"]),
        ("smollm", {"add_eos_token": True}, ["a", "<|im_end|>"]),
        ("llama-bpe", {}, ["<|im_start|>", "a"]),
        ("llama-bpe", {"add_bos_token": False}, ["a"]),
        ("llama-bpe", {"add_bos_token": True, "add_eos_token": True}, ["<|im_start|>", "a", "<|im_end|>"]),
    ],
)
def test_begin_and_end_tokens_are_added_as_declared(tokenizer_of, dest, pre, flags, expected):
    tokenizer = tokenizer_of(byte_level_tokenizer(pre, **flags))

    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a")) == expected
    # Other libraries read only this file.
    assert tokenizer.backend_tokenizer.from_file(str(dest / "tokenizer.json")).encode("a").tokens == expected


def test_empty_tokens_keep_their_ids(tokenizer_of):
    vocabulary = byte_level_tokenizer()
    vocabulary["tokenizer.ggml.tokens"] += ["", ""]
    vocabulary["tokenizer.ggml.token_type"] += [5, 5]

    assert len(tokenizer_of(vocabulary)) == len(vocabulary["tokenizer.ggml.tokens"])


# SentencePiece vocabularies


def train_sentence_piece(prefix, *symbols):
    """Train a SentencePiece model; return its processor, the text, and the metadata of its GGUF file."""
    text = Path(json.__file__).read_text() + "\nnaïve café 日本語 テスト 🦖\n" * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        user_defined_symbols=["<tool>", *symbols],
        control_symbols=["<|end|>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())
    tokens = [processor.id_to_piece(index) for index in ids]
    types = [
        2 if processor.is_unknown(index) else 3 if processor.is_control(index) else 6 if processor.is_byte(index) else 1
        for index in ids
    ]
    for symbol in ("<tool>", *symbols):
        types[tokens.index(symbol)] = 4
    metadata = {"model": "llama", "tokens": tokens, "token_type": types, "add_space_prefix": prefix}
    metadata["scores"] = [processor.get_score(index) for index in ids]
    return processor, text, {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


# As Gemma has them.
RUNS = ("\t", *("\n" * count for count in range(1, 8)), *("▁" * count for count in range(2, 32)))


@pytest.mark.parametrize(("prefix", "symbols"), [(True, ()), (False, RUNS)], ids=["llama", "gemma"])
def test_a_sentence_piece_vocabulary_tokenizes_like_sentence_piece(tokenizer_of, prefix, symbols):
    processor, text, vocabulary = train_sentence_piece(prefix, *symbols)
    tokenizer = tokenizer_of(vocabulary)
    rng = random.Random(0)
    starts = [rng.randrange(len(text) - 100) for _ in range(300)]

    for sample in TEXTS + [text[start : start + rng.randrange(1, 100)] for start in starts]:
        ids = tokenizer.encode(sample, add_special_tokens=False)
        assert ids == processor.encode(sample)
        assert tokenizer.decode(ids) == sample


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentence_piece_vocabulary_streams_with_the_fast_detokenizer(tokenizer_of, dest, prefix):
    tokenizer_of(sentence_piece_tokenizer(add_space_prefix=prefix))
    tokenizer = load_tokenizer(dest)

    ids = tokenizer.encode("hello hello\n日本 w🦖", add_special_tokens=False)

    assert tokenizer.convert_ids_to_tokens(ids)[0] == ("▁hello" if prefix else "hello")
    assert isinstance(tokenizer.detokenizer, SPMStreamingDetokenizer)
    assert stream_text(tokenizer.detokenizer, ids) == tokenizer.decode(ids) == "hello hello\n日本 w🦖"


def test_a_sentence_piece_vocabulary_has_llama_1s_special_tokens(tokenizer_of):
    tokenizer = tokenizer_of(sentence_piece_tokenizer())

    assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == ("<unk>", "<s>", "</s>")
    assert tokenizer.encode("hello</s>") == [1, tokenizer.convert_tokens_to_ids("▁hello"), 2]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("<tool><|end|>"))[1:] == ["<tool>", "<|end|>"]


def test_characters_outside_the_vocabulary_become_bytes(tokenizer_of):
    tokenizer = tokenizer_of(sentence_piece_tokenizer(add_bos_token=False, add_space_prefix=False))

    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("hé\n"))

    assert tokens == ["h", "<0xC3>", "<0xA9>", "<0x0A>"]


# Invalid vocabularies


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (byte_level_tokenizer("whisper-x"), 'pre-tokenizer "whisper-x" is not supported; supported: default, '),
        (byte_level_tokenizer(model="t5"), 'tokenizer "t5" is not supported; supported: "gpt2", "llama"'),
        (byte_level_tokenizer(merges=["h zz"]), 'merge "h zz" does not join two tokens into a third'),
        (byte_level_tokenizer(merges=["he"]), 'merge "he" does not join'),
        (byte_level_tokenizer(merges=["a b"]), 'merge "a b" does not join'),
        (byte_level_tokenizer(eos_token_id=267), "tokenizer.ggml.eos_token_id is 267, but there are 267 tokens"),
        (byte_level_tokenizer(token_type=[1, 2]), "tokenizer.ggml.token_type has 2 values for 267 tokens"),
        (byte_level_tokenizer(token_type=[0.0, float("nan")]), '"tokenizer.ggml.token_type" is not a list of finite'),
        (byte_level_tokenizer(tokens=["a", "b", "a"]), 'token "a" is duplicated'),
        (
            byte_level_tokenizer(tokens=["a" * 5000]),
            "tokenizer.ggml.tokens has a token of 5000 characters, more than 1024",
        ),
        (byte_level_tokenizer(tokens=[1, 2]), '"tokenizer.ggml.tokens" is not a list of texts'),
        (sentence_piece_tokenizer(scores=[0.0]), "tokenizer.ggml.scores has 1 values for 273 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inconsistent_vocabularies_are_rejected(tmp_path, convert, vocabulary, reason):
    with pytest.raises(ImportFailed) as caught:
        convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf"))

    assert caught.value.message.startswith("x.gguf: ")
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("vocabulary", "key"),
    [
        (byte_level_tokenizer(), "tokenizer.ggml.tokens"),
        (byte_level_tokenizer(), "tokenizer.ggml.merges"),
        (byte_level_tokenizer(), "tokenizer.ggml.model"),
        (sentence_piece_tokenizer(), "tokenizer.ggml.scores"),
    ],
)
def test_missing_parts_of_a_vocabulary_are_reported(tmp_path, convert, vocabulary, key):
    tiny = TinyLlama(vocabulary)
    del tiny.tokenizer[key]

    with pytest.raises(ImportFailed, match=f'^x.gguf: the metadata key "{key}" is missing$'):
        convert(tiny.write(tmp_path / "x.gguf"))


def add_long_tokens(vocabulary, count, kind):
    """Add tokens of 1000 characters."""
    prefixed = {f"tokenizer.ggml.{key}": value for key, value in {"token_type": kind, "scores": -1.0}.items()}
    for key, value in prefixed.items():
        if key in vocabulary:
            vocabulary[key] += [value] * count
    vocabulary["tokenizer.ggml.tokens"] += [f"{index:0>1000}" for index in range(count)]
    return vocabulary


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentence_piece_tokenizer])
@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
def test_added_tokens_that_take_long_to_find_are_rejected(tmp_path, convert, make, kind):
    vocabulary = add_long_tokens(make(), 2100, kind)

    with pytest.raises(ImportFailed) as caught:
        convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf"))

    assert re.fullmatch(
        r"x\.gguf: the control and user-defined tokens in tokenizer\.ggml\.tokens have 2100\d{3} characters, "
        "more than 2097152",
        caught.value.message,
    )


def test_tokens_whose_merges_take_long_to_derive_are_rejected(tmp_path, convert):
    vocabulary = add_long_tokens(sentence_piece_tokenizer(), 270, NORMAL)

    with pytest.raises(ImportFailed) as caught:
        convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf"))

    assert re.fullmatch(
        r"x\.gguf: tokenizer\.ggml\.tokens has too many long tokens: "
        r"the sum of their squared lengths is 27\d{7}, more than 268435456",
        caught.value.message,
    )


def test_long_tokens_with_listed_merges_are_accepted(tokenizer_of):
    vocabulary = add_long_tokens(byte_level_tokenizer(), 270, NORMAL)

    assert len(vocabulary["tokenizer.ggml.tokens"]) == len(tokenizer_of(vocabulary))


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (byte_level_tokenizer(), "tokenizer.ggml.merges has 7 merges, more than 5"),
        (sentence_piece_tokenizer(), "the tokens in tokenizer.ggml.tokens have more than 5 merges"),
    ],
    ids=["listed", "derived"],
)
def test_too_many_merges_are_rejected(tmp_path, convert, monkeypatch, vocabulary, reason):
    monkeypatch.setattr(tokenizer_module, "MAX_MERGES", 5)

    with pytest.raises(ImportFailed, match=f"^x.gguf: {reason}$"):
        convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf"))


def test_more_tokens_than_embeddings_are_rejected(tmp_path, convert, tiny):
    vocabulary = byte_level_tokenizer()
    vocabulary["tokenizer.ggml.tokens"] += ["more"]
    vocabulary["tokenizer.ggml.token_type"] += [1]

    with pytest.raises(ImportFailed, match="it has 268 tokens, but embeddings for 267"):
        convert(tiny.write(tmp_path / "x.gguf", metadata=vocabulary))
