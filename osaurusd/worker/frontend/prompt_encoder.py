"""Encode a prompt as tokens: a chat through the chat template, raw text, token ids, or fill-in-the-middle."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as inference
from osaurusd.inference.request import ChatPrompt, ScoringRequest, TextPrompt, TokenPrompt
from osaurusd.worker.frontend import context_length
from osaurusd.worker.frontend.candidates import TokenSequence
from osaurusd.worker.frontend.chat_images import ImageTexts
from osaurusd.worker.frontend.chat_template import ChatTemplate, EncodedPrompt, SplitChat

# Text with more characters per token is hardly text. It is cut before it is tokenized.
MAX_CHARACTERS_PER_TOKEN = 64


class EncodedContinuations(NamedTuple):
    """The tokens of a scoring request.

    Attributes:
        prompt: of the prompt.
        continuations: of each continuation, up to the candidates.
        candidates: of the candidates after each continuation.
        truncated: the numbers of the continuations that were cut.
    """

    prompt: list[int]
    continuations: list[list[int]]
    candidates: list[list[TokenSequence]]
    truncated: list[int]


class FillInTheMiddleTokens(NamedTuple):
    """The special tokens of one model family. Each precedes its part of the prompt; `middle` precedes the output."""

    prefix: str
    suffix: str
    middle: str | None
    suffix_first: bool = False


FILL_IN_THE_MIDDLE_FAMILIES = (
    FillInTheMiddleTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite 4
    FillInTheMiddleTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite 3
    FillInTheMiddleTokens("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FillInTheMiddleTokens("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # CodeLlama
    FillInTheMiddleTokens(  # DeepSeek
        "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"
    ),
    FillInTheMiddleTokens("[PREFIX]", "[SUFFIX]", None, suffix_first=True),  # Codestral
)


class PromptEncoder:
    """Encodes prompts for one model. Safe on any thread.

    Args:
        tokenizer: mlx_lm's tokenizer wrapper.
        max_context: the model's context length in tokens, if known.
        find_shared_prefix: also determine how many tokens of a chat do not depend on its last user message.
    """

    def __init__(self, tokenizer: Any, max_context: int | None, *, find_shared_prefix: bool = False) -> None:
        self._tokenizer = tokenizer
        self._max_context = max_context
        self._find_shared_prefix = find_shared_prefix
        # Determining what the template accepts must not delay the thread that loads the model.
        executor = ThreadPoolExecutor(1, "chat-template")
        self._template = executor.submit(ChatTemplate, tokenizer)
        executor.shutdown(wait=False)

    def encode(self, prompt: inference.Prompt, images: ImageTexts | None = None) -> EncodedPrompt:
        """Encode a prompt as tokens; `images` is what the images of a chat become.

        Raises:
            InvalidRequest: the prompt is unusable or empty.
            UnsupportedParameter: the prompt has a suffix, and the model does not support fill-in-the-middle.
            ContextLengthExceeded: the prompt leaves no room for output.
        """
        encoded = self._encode(prompt, images)
        if not encoded.tokens:
            raise InvalidRequest("the prompt is empty after tokenization", location=("prompt",))
        image_tokens = sum(len(positions) for positions in encoded.image_positions)
        context_length.check_length(len(encoded.tokens), self._max_context, image_tokens=image_tokens)
        return encoded

    def encode_continuations(self, request: ScoringRequest) -> EncodedContinuations:
        """Encode the prompt, the continuations and the candidates of a scoring request, each separately.

        Raises:
            InvalidRequest: the prompt is unusable.
            ContextLengthExceeded: the prompt with one of its continuations does not fit into the context.
        """
        before, after, answer_prefix = self._split(request)
        context_length.check_text(self._tokenizer, before, self._max_context)
        is_chat = isinstance(request.prompt, ChatPrompt)
        prompt = list(self._tokenizer.encode(before, add_special_tokens=not is_chat))
        ending = self._encode_part(after)
        used = len(prompt) + len(ending)
        context_length.check_length(used, self._max_context)
        encode_once = cache(self._encode_part)
        encoded = EncodedContinuations(prompt, [], [], [])
        for index, each in enumerate(request.continuations):
            if request.truncate:
                tokens, is_cut = self._encode_beginning(each.text, used)
                encoded.truncated.extend([index] if is_cut else [])
            else:
                tokens = self._encode_whole(each.text, used, index)
            encoded.continuations.append([*tokens, *ending])
            encoded.candidates.append([encode_once(answer_prefix + text) for text in each.candidates])
        return encoded

    def _split(self, request: ScoringRequest) -> SplitChat:
        if isinstance(request.prompt, TextPrompt):
            return SplitChat(request.prompt.text, request.ending)
        return self._template.result().split(request.prompt)

    def _encode_whole(self, text: str, used: int, index: int) -> TokenSequence:
        """Encode a continuation, which must fit into the context beside `used` other tokens."""
        location = ("continuations", index)
        context_length.check_text(self._tokenizer, text, self._max_context, location)
        tokens = self._encode_part(text)
        context_length.check_length(used + len(tokens), self._max_context, location)
        return tokens

    def _encode_beginning(self, text: str, used: int) -> tuple[TokenSequence, bool]:
        """Encode what fits of a continuation beside `used` other tokens; return the tokens, and whether it was cut."""
        if self._max_context is None:
            return self._encode_part(text), False
        room = self._max_context - 1 - used
        beginning = text[: MAX_CHARACTERS_PER_TOKEN * (room + 1)]
        tokens = self._encode_part(beginning)
        return tokens[:room], len(tokens) > room or len(beginning) < len(text)

    def _encode_part(self, text: str) -> TokenSequence:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode(self, prompt: inference.Prompt, images: ImageTexts | None) -> EncodedPrompt:
        match prompt:
            case ChatPrompt():
                template = self._template.result()
                return template.encode(
                    prompt, self._max_context, find_shared_prefix=self._find_shared_prefix, images=images
                )
            case TextPrompt():
                text = prompt.text + (prompt.suffix or "")
                context_length.check_text(self._tokenizer, text, self._max_context)
                return EncodedPrompt(_encode_text(self._tokenizer, prompt))
            case TokenPrompt():
                return EncodedPrompt(_check_ids(self._tokenizer, prompt.tokens))


def _encode_text(tokenizer: Any, prompt: TextPrompt) -> list[int]:
    if prompt.suffix is not None:
        return _encode_fill_in_the_middle(tokenizer, prompt.text, prompt.suffix)
    tokens = list(tokenizer.encode(prompt.text))
    if tokens or prompt.text:
        return tokens
    # An empty prompt starts a document, and a document follows the end of another one.
    return [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]


def _check_ids(tokenizer: Any, tokens: list[int]) -> list[int]:
    size = len(tokenizer)
    unknown = next((token for token in tokens if not 0 <= token < size), None)
    if unknown is not None:
        raise InvalidRequest(
            f"this model's token ids range from 0 to {size - 1}, not {unknown}", location=("prompt", "tokens")
        )
    return tokens


def _encode_fill_in_the_middle(tokenizer: Any, prefix: str, suffix: str) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    for family in FILL_IN_THE_MIDDLE_FAMILIES:
        if all(token in vocabulary for token in family[:3] if token is not None):
            return [*tokenizer.encode(""), *_arrange(tokenizer, vocabulary, family, prefix, suffix)]
    raise UnsupportedParameter(
        "this model does not support fill-in-the-middle; leave the suffix out or use a model that was trained for it",
        location=("prompt", "suffix"),
    )


def _arrange(
    tokenizer: Any, vocabulary: dict[str, int], family: FillInTheMiddleTokens, prefix: str, suffix: str
) -> list[int]:
    before = [vocabulary[family.prefix], *tokenizer.encode(prefix, add_special_tokens=False)]
    after = [vocabulary[family.suffix], *tokenizer.encode(suffix, add_special_tokens=False)]
    parts = [*after, *before] if family.suffix_first else [*before, *after]
    return parts if family.middle is None else [*parts, vocabulary[family.middle]]
