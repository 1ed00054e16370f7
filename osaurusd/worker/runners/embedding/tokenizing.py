"""From texts to token sequences, within the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.inference.request import Location, TextPrompt, TokenPrompt
from osaurusd.inference.retrieval import EmbedRequest, Pipeline, RerankRequest
from osaurusd.wire.errors import as_json
from osaurusd.worker.runners.embedding.inputs import TokenSequence

_PROBES = ("a", "b")


@dataclass(frozen=True)
class Encoded:
    """Encoded inputs, and the numbers of those that were cut."""

    sequences: list[TokenSequence]
    truncated: list[int]


class SpecialTokens:
    """The special tokens around the texts of a sequence.

    Args:
        tokenizer: adds them.
        count: how many texts a sequence has: 1, or 2 for a pair.
    """

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        probes = _PROBES[:count]
        texts = [tokenizer.encode(probe, add_special_tokens=False).ids for probe in probes]
        whole = tokenizer.encode(probes[0], probes[1] if count > 1 else None)
        self._tokens: list[list[int]] = []
        self._types: list[list[int]] = []
        self._text_types: list[int] = []
        start = 0
        for text in texts:
            begin = _find(whole.ids, text, start)
            self._tokens.append(whole.ids[start:begin])
            self._types.append(whole.type_ids[start:begin])
            self._text_types.append(whole.type_ids[begin] if text else 0)
            start = begin + len(text)
        self._tokens.append(whole.ids[start:])
        self._types.append(whole.type_ids[start:])

    @property
    def size(self) -> int:
        """The number of special tokens."""
        return sum(map(len, self._tokens))

    @property
    def prefix(self) -> list[int]:
        return self._tokens[0]

    @property
    def suffix(self) -> list[int]:
        return self._tokens[-1]

    def wrap(self, *texts: Sequence[int], pooled_from: int = 0) -> TokenSequence:
        """Return the sequence of these texts."""
        tokens, types = [*self._tokens[0]], [*self._types[0]]
        for number, text in enumerate(texts):
            tokens += [*text, *self._tokens[number + 1]]
            types += [*[self._text_types[number]] * len(text), *self._types[number + 1]]
        return TokenSequence(tokens, types if any(types) else None, pooled_from)


class InputEncoder:
    """Encodes the inputs of requests. Safe on any thread.

    Args:
        folder: has the tokenizer.
        vocabulary: the number of token ids that the network knows.
        max_tokens: the context in tokens.
        pipeline: the prompts of a model that embeds.
    """

    def __init__(self, folder: Path, vocabulary: int, max_tokens: int, pipeline: Pipeline | None) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Files may contain settings that cut texts silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._single, self._pair = SpecialTokens(self._tokenizer, 1), SpecialTokens(self._tokenizer, 2)
        self._vocabulary = min(vocabulary, self._tokenizer.get_vocab_size())
        self._max_tokens = max_tokens
        self._pipeline = pipeline or Pipeline(pooling=["cls"])

    def encode(self, request: EmbedRequest) -> Encoded:
        """Encode the inputs of an embedding request.

        Raises:
            InvalidRequest: an input is empty or has an unknown token id, or there is no such prompt.
            ContextLengthExceeded: an input is too long.
        """
        prompt = self._prompt(request.prompt_name)
        prompt_tokens = self._tokenize([prompt])[0] if prompt else []
        texts = [each.text if isinstance(each, TextPrompt) else "" for each in request.inputs]
        encodings = self._tokenize([prompt + text for text in texts])
        skipped = 0 if self._pipeline.pools_prompt else len(self._single.prefix) + len(prompt_tokens)
        sequences, truncated = [], []
        for number, (each, tokens) in enumerate(zip(request.inputs, encodings, strict=True)):
            if isinstance(each, TokenPrompt):
                tokens = [*prompt_tokens, *self._own_tokens(each.tokens, number)]
            room = self._max_tokens - self._single.size
            if len(tokens) > room:
                self._check_length(len(tokens) + self._single.size, ("inputs", number), truncate=request.truncate)
                truncated.append(number)
            sequences.append(self._single.wrap(tokens[:room], pooled_from=skipped))
        return Encoded(sequences, truncated)

    def encode_pairs(self, request: RerankRequest) -> Encoded:
        """Encode the query with each document.

        Raises:
            ContextLengthExceeded: the query or a document is too long.
        """
        query, *documents = self._tokenize([request.query, *request.documents])
        room = self._max_tokens - self._pair.size - len(query)
        if room < 1:
            self._check_length(len(query) + self._pair.size + 1, ("query",), truncate=False)
        sequences, truncated = [], []
        for number, tokens in enumerate(documents):
            if len(tokens) > room:
                total = len(query) + len(tokens) + self._pair.size
                self._check_length(total, ("documents", number), truncate=request.truncate)
                truncated.append(number)
            sequences.append(self._pair.wrap(query, tokens[:room]))
        return Encoded(sequences, truncated)

    def _prompt(self, name: str | None) -> str:
        prompts = self._pipeline.prompts
        name = self._pipeline.default_prompt if name is None else name
        if not name:
            return ""
        if name not in prompts:
            known = ", ".join(f"`{each}`" for each in prompts)
            hint = f"its prompts are {known}" if known else "omit it"
            raise InvalidRequest(f"the model has no prompt {as_json(name[:100])}; {hint}", location=("prompt_name",))
        return prompts[name]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if self._pipeline.lowercase:
            texts = [text.lower() for text in texts]
        return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _own_tokens(self, tokens: list[int], number: int) -> list[int]:
        """Return the tokens of a client without the special tokens around them."""
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise InvalidRequest(
                f"this model's token ids range from 0 to {self._vocabulary - 1}, not {unknown}; "
                "send text, or use the model's own tokenizer",
                location=("inputs", number),
            )
        prefix, suffix = self._single.prefix, self._single.suffix
        if prefix and tokens[: len(prefix)] == prefix:
            tokens = tokens[len(prefix) :]
        if suffix and tokens[-len(suffix) :] == suffix:
            tokens = tokens[: -len(suffix)]
        return tokens

    def _check_length(self, length: int, location: Location, *, truncate: bool) -> None:
        if not truncate:
            raise ContextLengthExceeded(
                f"{length} tokens exceed the model's context of {self._max_tokens}; "
                "shorten it, or set `truncate` to cut it",
                location=location,
            )


def _find(tokens: Sequence[int], part: Sequence[int], start: int) -> int:
    """Return where `part` begins in `tokens`.

    Raises:
        ValueError: it does not occur, because the tokenizer changes texts between special tokens.
    """
    for begin in range(start, len(tokens) - len(part) + 1):
        if list(tokens[begin : begin + len(part)]) == list(part):
            return begin
    raise ValueError("the tokenizer does not add special tokens around the text only")
