import pytest

from osaurusd.errors import ContextLengthExceeded
from osaurusd.inference.request import ChatPrompt, Message, TextPrompt, Tool
from osaurusd.worker.frontend import context_length
from osaurusd.worker.frontend.prompt_encoder import PromptEncoder

CONTEXT = 256
WORDS = "The quick brown fox jumps over the lazy dog. "
FAR_TOO_LONG = WORDS * 20_000


class CountingTokenizer:
    """A tokenizer that records how many characters each call reads."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.lengths = []

    def encode(self, text, **options):
        self.lengths.append(len(text))
        return self._tokenizer.encode(text, **options)

    def apply_chat_template(self, *arguments, tokenize, **options):
        text = self._tokenizer.apply_chat_template(*arguments, tokenize=False, **options)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


@pytest.fixture
def counting(tokenizer, monkeypatch):
    monkeypatch.setattr(context_length, "MIN_LARGE_CHARACTERS", 0)
    return CountingTokenizer(tokenizer)


def encode(tokenizer, prompt, max_context):
    return PromptEncoder(tokenizer, max_context).encode(prompt)


def chat(text, **properties):
    return ChatPrompt(messages=[Message.from_text("user", text)], **properties)


TOOL = Tool(name="f", description=FAR_TOO_LONG, parameters={"type": "object"})


@pytest.mark.parametrize(
    "prompt",
    [chat(FAR_TOO_LONG), chat("Hi", tools=[TOOL]), TextPrompt(text=FAR_TOO_LONG)],
    ids=["chat", "tools", "text"],
)
def test_only_the_beginning_of_a_far_too_long_prompt_is_tokenized(counting, prompt):
    with pytest.raises(ContextLengthExceeded, match=r"more than \d{3,} tokens.*\b256 tokens") as caught:
        encode(counting, prompt, CONTEXT)

    assert caught.value.location == ("prompt",)
    assert sum(counting.lengths) < len(FAR_TOO_LONG) // 100


def test_only_the_beginning_is_tokenized_without_a_template(counting):
    counting.has_chat_template = False

    with pytest.raises(ContextLengthExceeded):
        encode(counting, chat(FAR_TOO_LONG), CONTEXT)

    assert sum(counting.lengths) < len(FAR_TOO_LONG) // 100


@pytest.mark.parametrize("text", [" " * 4000, WORDS * 10], ids=["few tokens", "short"])
def test_a_text_that_fits_is_tokenized_completely(counting, tokenizer, text):
    assert encode(tokenizer, TextPrompt(text=text), None) == encode(counting, TextPrompt(text=text), CONTEXT)
    assert len(text) == counting.lengths[-1]


def test_text_that_the_template_drops_does_not_count(counting):
    counting.apply_chat_template = lambda *_, tokenize, **__: [1, 2, 3] if tokenize else "short"

    assert [1, 2, 3] == encode(counting, chat(FAR_TOO_LONG), CONTEXT).tokens


def test_a_large_text_of_few_tokens_is_checked_in_growing_cuts(counting):
    context_length.check_text(counting, " " * 200_000, 20_000)
    assert [160_000] == counting.lengths
    counting.lengths.clear()
    with pytest.raises(ContextLengthExceeded):
        context_length.check_text(counting, " " * 4000 + FAR_TOO_LONG, CONTEXT)
    assert [2048, 8192] == counting.lengths


def test_a_slightly_too_long_text_is_rejected_with_its_exact_count(tokenizer):
    count = len(encode(tokenizer, TextPrompt(text=WORDS * 2000), None).tokens)

    with pytest.raises(ContextLengthExceeded, match=rf" {count} tokens"):
        encode(tokenizer, TextPrompt(text=WORDS * 2000), CONTEXT)


def test_without_a_known_context_length_nothing_is_too_long(counting):
    context_length.check_text(counting, FAR_TOO_LONG, None)
    assert [] == counting.lengths
    assert not context_length.is_large(10**9, None)
