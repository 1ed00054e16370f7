import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from osaurusd.worker.frontend.logprobs import Score, TokenAligner, TokenTexts


@pytest.fixture
def sentencepiece():
    """A tokenizer that represents spaces and bytes like SentencePiece."""
    vocabulary = {"<unk>": 0, "\u2581a": 1, "b": 2, "<0xF0>": 3, "<0x9F>": 4, "<0xA6>": 5, "<0x95>": 6}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken("<s>")])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture
def wordpiece():
    """A tokenizer with another decoder."""
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "un": 1, "##do": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("text", ["one two", "naïve 🦕", "\n\tx", "<|im_end|>"])
def test_byte_level_tokens_have_the_bytes_of_the_text(tokenizer, text):
    texts = TokenTexts(tokenizer)

    assert text.encode() == bytes(byte for token in tokenizer.encode(text) for byte in texts[token][1])


def test_special_tokens_have_their_own_text(tokenizer, sentencepiece):
    assert ("<|im_end|>", list(b"<|im_end|>")) == TokenTexts(tokenizer)[2]
    assert ("<s>", list(b"<s>")) == TokenTexts(sentencepiece)[7]


def test_sentencepiece_tokens_have_the_bytes_of_the_text(sentencepiece):
    texts = TokenTexts(sentencepiece)

    assert (" a", list(b" a")) == texts[1]
    assert "b🦕".encode() == bytes(byte for token in (2, 3, 4, 5, 6) for byte in texts[token][1])
    assert texts[3][0] == "\ufffd"


def test_other_tokens_have_their_decoded_text(wordpiece):
    assert "un" == TokenTexts(wordpiece)[1][0]
    assert TokenTexts(wordpiece)[2][0].endswith("do")


def test_unused_ids_have_no_text(tokenizer):
    assert ("", []) == TokenTexts(tokenizer)[len(tokenizer) + 5]


def test_first_token_of_a_prompt_has_no_logprob(sentencepiece):
    first, second = TokenTexts(sentencepiece).token_logprobs([1, 2], [None, Score(-0.5, [(2, -0.5), (1, -1.5)])])

    assert (" a", None, []) == (first.text, first.logprob, first.top)
    assert ("b", -0.5) == (second.text, second.logprob)
    assert [("b", -0.5), (" a", -1.5)] == [(each.text, each.logprob) for each in second.top]


def emitted_tokens(*steps):
    """Return the numbers of the tokens that each `emit` step returns."""
    aligner = TokenAligner(_Numbers())
    number, emitted = 0, []
    for kind, characters in steps:
        if kind == "add":
            aligner.add(number, Score(0.0), characters)
            number += 1
        elif kind == "extend":
            aligner.extend(characters)
        elif kind == "drop":
            aligner.drop(characters)
        else:
            emitted.append([int(token.text) for token in aligner.emit(characters)])
    return emitted


class _Numbers(TokenTexts):
    """A vocabulary of numbers."""

    def __init__(self):
        super().__init__(None)

    def _bytes(self, token):
        return str(token).encode()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("add", 3), ("emit", 3)], [[0]]),
        ([("add", 3), ("emit", 2), ("emit", 1)], [[], [0]]),
        ([("add", 3), ("drop", 1), ("emit", 2)], [[]]),
        ([("add", 3), ("emit", 1), ("drop", 2)], [[]]),
        ([("add", 2), ("add", 2), ("drop", 3), ("emit", 1)], [[]]),
        ([("add", 2), ("add", 2), ("drop", 2), ("emit", 2)], [[1]]),
        ([("add", 2), ("add", 0), ("emit", 2), ("add", 1), ("emit", 1)], [[0], [1, 2]]),
        ([("add", 2), ("add", 0), ("emit", 2), ("add", 1), ("drop", 1)], [[0]]),
        ([("add", 0), ("extend", 1), ("emit", 1)], [[0]]),
        ([("extend", 1), ("emit", 1)], [[]]),
        ([("add", 1), ("emit", 0), ("drop", 0), ("emit", 1)], [[], [0]]),
    ],
)
def test_tokens_are_emitted_with_the_last_of_their_characters(steps, expected):
    assert expected == emitted_tokens(*steps)
