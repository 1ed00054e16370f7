"""What is far too long is refused without tokenizing it."""

import pytest

from osaurusd.errors import ContextLengthExceeded
from osaurusd.inference.request import ChatPrompt, Message, TextPrompt
from osaurusd.worker.frontend import length, prompts

CONTEXT = 256
WORDS = "The quick brown fox jumps over the lazy dog. "
FAR_TOO_LONG = WORDS * 20_000


class Counting:
    """A tokenizer that notes how many characters it has to read.

    Args:
        tokenizer: does the work.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.read = []

    def encode(self, text, **options):
        self.read.append(len(text))
        return self._tokenizer.encode(text, **options)

    def apply_chat_template(self, *arguments, tokenize, **options):
        text = self._tokenizer.apply_chat_template(*arguments, tokenize=False, **options)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


@pytest.fixture
def counting(tokenizer, monkeypatch):
    monkeypatch.setattr(length, "LEAST_CHARACTERS", 0)
    return Counting(tokenizer)


def chat(text, **properties):
    return ChatPrompt(messages=[Message(role="user", content=text)], **properties)


TOOL = {"type": "function", "function": {"name": "f", "description": FAR_TOO_LONG, "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (chat(FAR_TOO_LONG), "messages"),
        (chat("Hi", tools=[TOOL]), "messages"),
        (TextPrompt(text=FAR_TOO_LONG), "prompt"),
    ],
    ids=["chat", "tools", "text"],
)
def test_only_the_beginning_of_what_is_far_too_long_is_tokenized(counting, prompt, param):
    with pytest.raises(ContextLengthExceeded, match=r"\b256 tokens.* more than \d{3,} tokens") as caught:
        prompts.encode(counting, prompt, CONTEXT)

    assert param == caught.value.param
    assert sum(counting.read) < len(FAR_TOO_LONG) // 100


def test_nor_is_it_without_a_template(counting):
    counting.has_chat_template = False

    with pytest.raises(ContextLengthExceeded):
        prompts.encode(counting, chat(FAR_TOO_LONG), CONTEXT)

    assert sum(counting.read) < len(FAR_TOO_LONG) // 100


@pytest.mark.parametrize("text", [" " * 8000, WORDS * 20], ids=["few tokens", "short"])
def test_what_fits_is_tokenized_as_ever(counting, tokenizer, text):
    assert prompts.encode(tokenizer, TextPrompt(text=text), None) == prompts.encode(
        counting, TextPrompt(text=text), CONTEXT
    )
    assert len(text) == counting.read[-1]


def test_what_a_template_leaves_out_does_not_count(counting):
    counting.apply_chat_template = lambda *_, tokenize, **__: [1, 2, 3] if tokenize else "short"

    assert [1, 2, 3] == prompts.encode(counting, chat(FAR_TOO_LONG), CONTEXT).tokens


def test_one_large_text_of_few_tokens_is_looked_at_in_growing_pieces(counting):
    length.check_text(counting, " " * 200_000, 20_000, "prompt")
    assert [160_000] == counting.read
    counting.read.clear()
    with pytest.raises(ContextLengthExceeded):
        length.check_text(counting, " " * 10_000 + FAR_TOO_LONG, CONTEXT, "prompt")
    assert [2048, 8192, 32768] == counting.read


def test_what_is_only_somewhat_too_long_is_counted_to_its_end(tokenizer):
    count = len(prompts.encode(tokenizer, TextPrompt(text=WORDS * 2000), None).tokens)

    with pytest.raises(ContextLengthExceeded, match=rf" {count} tokens"):
        prompts.encode(tokenizer, TextPrompt(text=WORDS * 2000), CONTEXT)


def test_without_a_known_context_nothing_is_too_long(counting):
    length.check_text(counting, FAR_TOO_LONG, None, "prompt")
    assert [] == counting.read
    assert not length.is_large(10**9, None)
