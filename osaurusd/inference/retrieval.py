"""Embedding and rerank requests, independent of the client's protocol, their results, and how a model embeds text."""

import array
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from osaurusd.inference.request import TextPrompt, TokenPrompt

_FLOAT_BYTES = 4


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything in this module."""


# Requests


class EmbedRequest(_Part, frozen=True):
    """Texts to embed.

    Attributes:
        dimensions: length of the vectors, for models that were trained for shorter ones; None means all dimensions.
        prompt_name: the model's prompt that precedes each text; None means its default, and an empty name none.
        truncate: cut texts that exceed the context instead of rejecting them.
    """

    inputs: list[TextPrompt | TokenPrompt]
    dimensions: int | None = None
    prompt_name: str | None = None
    truncate: bool = False


class RerankRequest(_Part, frozen=True):
    """Documents to score by their relevance to a query.

    Attributes:
        instruction: what counts as relevant, for models that accept an instruction.
        truncate: cut documents that exceed the context instead of rejecting them.
    """

    query: str
    documents: list[str]
    instruction: str | None = None
    truncate: bool = False


# Results. Each precedes the `Completed` of its request.


class Vectors(_Part, frozen=True, tag="vectors"):
    """The vectors of all inputs, in their order.

    Attributes:
        dimensions: length of each vector.
        truncated: numbers of the inputs that were cut.
        data: the vectors as little-endian float32. It is a blob of the frame that carries this event.
    """

    dimensions: int
    truncated: list[int] = []
    data: bytes = b""

    def rows(self) -> Iterator[bytes]:
        """Yield the data of each vector."""
        size = self.dimensions * _FLOAT_BYTES
        return (self.data[start : start + size] for start in range(0, len(self.data), size))

    def numbers(self) -> Iterator[list[float]]:
        """Yield the numbers of each vector."""
        for row in self.rows():
            numbers = array.array("f", row)
            if sys.byteorder == "big":
                numbers.byteswap()
            yield numbers.tolist()


class Scores(_Part, frozen=True, tag="scores"):
    """The relevance of each document, from 0 to 1, in their order. `truncated` has the numbers of documents cut."""

    values: list[float]
    truncated: list[int] = []


# How a model embeds text: its sentence-transformers modules

Pooling = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Activation = Literal["identity", "tanh", "relu", "gelu", "silu", "sigmoid"]


class DenseLayer(_Part, frozen=True):
    """A linear layer after pooling; its weights are in the subfolder `folder` of the model."""

    folder: str
    activation: Activation


class Pipeline(_Part, frozen=True):
    """How the vectors of a text's tokens become the vector of the text.

    Attributes:
        pooling: the poolings whose results are concatenated.
        pools_prompt: whether the tokens of the prompt are pooled, too.
        layers: layers after pooling.
        normalize: whether vectors get length 1.
        prompts: texts that precede an input, by name.
        default_prompt: the name of the prompt for inputs without one.
        max_tokens: the maximum length of an input; None means the length of the network.
        lowercase: whether texts are converted to lowercase.
        matryoshka: whether the first dimensions of a vector are a vector, too.
        matryoshka_dimensions: the supported numbers of dimensions; empty if all are.
    """

    pooling: Annotated[list[Pooling], msgspec.Meta(min_length=1)]
    pools_prompt: bool = True
    layers: list[DenseLayer] = []
    normalize: bool = False
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    max_tokens: int | None = None
    lowercase: bool = False
    matryoshka: bool = False
    matryoshka_dimensions: list[int] = []
