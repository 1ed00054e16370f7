"""The operations of plans: what rank 0 of a group does with its caches, and the other ranks repeat.

The arrays of the prefix cache have numbers, which are the same on all ranks.
"""

import msgspec

from osaurusd.worker.engine.planner import PrefillChunk
from osaurusd.worker.engine.request import SequenceId


class _Operation(msgspec.Struct, frozen=True, array_like=True):
    """Base of all operations: JSON arrays, as most plans are a decode step."""


class Decode(_Operation, frozen=True, tag="decode"):
    """Run a step of the batch with the index `batch`, whose rows continue with `tokens`."""

    batch: int
    tokens: list[int]


class Begin(_Operation, frozen=True, tag="begin"):
    """Take over a prompt, whose tokens are the blob of the plan.

    Attributes:
        length: how many of its tokens the prefix cache has.
        blocks: the numbers of their blocks.
        states: the number of the states at `length`, for models that have some.
    """

    prompt: SequenceId
    length: int
    blocks: list[int]
    states: int | None


class Drop(_Operation, frozen=True, tag="drop"):
    """Drop a prompt."""

    prompt: SequenceId


class Prefill(_Operation, frozen=True, tag="prefill"):
    """Run one pass over parts of prompts."""

    chunks: tuple[PrefillChunk, ...]


class Start(_Operation, frozen=True, tag="start"):
    """Start to decode after complete prompts; `sequences` are ids, each with the length of the prompt."""

    prompts: list[SequenceId]
    sequences: list[tuple[SequenceId, int]]


class Merge(_Operation, frozen=True, tag="merge"):
    """Merge the batches whose sequences are in one group."""

    groups: tuple[tuple[SequenceId, ...], ...]


class Remove(_Operation, frozen=True, tag="remove"):
    """Remove decoding sequences."""

    ids: list[SequenceId]


class Store(_Operation, frozen=True, tag="store"):
    """Keep token ranges of a prompt or a sequence as blocks: number, start and end of each."""

    source: SequenceId
    blocks: list[tuple[int, int, int]]


class StoreStates(_Operation, frozen=True, tag="store_states"):
    """Keep the states of a prompt or a sequence."""

    source: SequenceId
    number: int


class Release(_Operation, frozen=True, tag="release"):
    """Drop blocks and states that rank 0 no longer has."""

    numbers: list[int]


class ClearCache(_Operation, frozen=True, tag="clear_cache"):
    """Return freed buffers to the system."""


class Clear(_Operation, frozen=True, tag="clear"):
    """Drop all prompts and sequences."""


Operation = (
    Decode | Begin | Drop | Prefill | Start | Merge | Remove | Store | StoreStates | Release | ClearCache | Clear
)

ENCODER = msgspec.json.Encoder()
DECODER: msgspec.json.Decoder[list[Operation]] = msgspec.json.Decoder(list[Operation])
