import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from osaurusd.worker.frontend.likelihood import Ledger, Score, TokenTexts


@pytest.fixture
def sentencepiece():
    """A tokenizer that spells spaces and bytes as SentencePiece does."""
    vocabulary = {"<unk>": 0, "\u2581a": 1, "b": 2, "<0xF0>": 3, "<0x9F>": 4, "<0xA6>": 5, "<0x95>": 6}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken("<s>")])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture
def wordpiece():
    """A tokenizer that spells tokens in yet another way."""
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "un": 1, "##do": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("text", ["one two", "naïve 🦕", "\n\tx", "<|im_end|>"])
def test_the_bytes_of_byte_level_tokens_are_those_of_the_text(tokenizer, text):
    texts = TokenTexts(tokenizer)

    assert text.encode() == bytes(byte for token in tokenizer.encode(text) for byte in texts[token][1])


def test_special_tokens_are_their_text(tokenizer, sentencepiece):
    assert ("<|im_end|>", list(b"<|im_end|>")) == TokenTexts(tokenizer)[2]
    assert ("<s>", list(b"<s>")) == TokenTexts(sentencepiece)[7]


def test_the_bytes_of_sentencepiece_tokens_are_those_of_the_text(sentencepiece):
    texts = TokenTexts(sentencepiece)

    assert (" a", list(b" a")) == texts[1]
    assert "b🦕".encode() == bytes(byte for token in (2, 3, 4, 5, 6) for byte in texts[token][1])
    assert texts[3][0] == "\ufffd"


def test_other_tokens_are_what_they_decode_to(wordpiece):
    assert "un" == TokenTexts(wordpiece)[1][0]
    assert TokenTexts(wordpiece)[2][0].endswith("do")


def test_ids_that_mean_nothing_have_no_text(tokenizer):
    assert ("", []) == TokenTexts(tokenizer)[len(tokenizer) + 5]


def settled(*steps):
    """The numbers of the tokens that are told with each step: an added length, or one told or dropped."""
    ledger = Ledger(_Numbers())
    number, told = 0, []
    for kind, characters in steps:
        if kind == "add":
            ledger.add(number, Score(0.0), characters)
            number += 1
        elif kind == "extend":
            ledger.extend(characters)
        elif kind == "drop":
            ledger.drop(characters)
        else:
            told.append([int(token.text) for token in ledger.tell(characters)])
    return told


class _Numbers(TokenTexts):
    """A vocabulary of numbers."""

    def __init__(self):
        super().__init__(None)

    def _bytes(self, token):
        return str(token).encode()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("add", 3), ("tell", 3)], [[0]]),
        ([("add", 3), ("tell", 2), ("tell", 1)], [[], [0]]),
        ([("add", 3), ("drop", 1), ("tell", 2)], [[]]),
        ([("add", 3), ("tell", 1), ("drop", 2)], [[]]),
        ([("add", 2), ("add", 2), ("drop", 3), ("tell", 1)], [[]]),
        ([("add", 2), ("add", 2), ("drop", 2), ("tell", 2)], [[1]]),
        ([("add", 2), ("add", 0), ("tell", 2), ("add", 1), ("tell", 1)], [[0], [1, 2]]),
        ([("add", 2), ("add", 0), ("tell", 2), ("add", 1), ("drop", 1)], [[0]]),
        ([("add", 0), ("extend", 1), ("tell", 1)], [[0]]),
        ([("extend", 1), ("tell", 1)], [[]]),
        ([("add", 1), ("tell", 0), ("drop", 0), ("tell", 1)], [[], [0]]),
    ],
)
def test_tokens_are_told_once_all_their_characters_are(steps, expected):
    assert expected == settled(*steps)
