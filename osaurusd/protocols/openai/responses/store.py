"""Stored responses: what clients can retrieve and continue."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from osaurusd.protocols.openai.responses.types import Item

_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(Item).decode


@dataclass(frozen=True)
class StoredResponse:
    """A final response as JSON. Responses of one conversation share the items that they have in common.

    Attributes:
        input: the items before its output, also those of earlier responses, oldest first.
    """

    id: str
    response: bytes
    input: tuple[bytes, ...]
    output: tuple[bytes, ...]

    @property
    def items(self) -> tuple[bytes, ...]:
        """The conversation up to the end of this response."""
        return (*self.input, *self.output)

    @property
    def parts(self) -> Iterator[bytes]:
        yield self.response
        yield from self.input
        yield from self.output


def encode_items(items: Sequence[Item]) -> tuple[bytes, ...]:
    return tuple(_encode(item) for item in items)


def decode_items(items: Sequence[bytes]) -> list[Item]:
    return [_decode_item(item) for item in items]


class ResponseStore(Protocol):
    """Keeps responses."""

    def put(self, stored: StoredResponse) -> None:
        """Add a response."""

    async def get(self, id_: str) -> StoredResponse | None:
        """Return a response, and keep it longer."""

    async def delete(self, id_: str) -> bool:
        """Remove a response; returns whether there was one. Those that continue it stay complete."""

    async def close(self) -> None:
        """Wait until everything is written."""


class MemoryStore:
    """Keeps responses in memory; when they exceed a size, those that were not used for longest are dropped.

    Args:
        max_bytes: returns the size in force.
    """

    def __init__(self, max_bytes: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        # Of each part that some response has: how many do. The parts live as long as their responses.
        self._references: Counter[int] = Counter()
        self.bytes = 0

    def put(self, stored: StoredResponse) -> None:
        """Add a response."""
        self._drop(stored.id)
        self._responses[stored.id] = stored
        for part in stored.parts:
            if not self._references[id(part)]:
                self.bytes += len(part)
            self._references[id(part)] += 1
        while self.bytes > self._max_bytes() and self._responses:
            self._drop(next(iter(self._responses)))

    async def get(self, id_: str) -> StoredResponse | None:
        """Return a response, and keep it longer."""
        stored = self._responses.get(id_)
        if stored is not None:
            self._responses.move_to_end(id_)
        return stored

    async def delete(self, id_: str) -> bool:
        """Remove a response; returns whether there was one. Those that continue it stay complete."""
        return self._drop(id_)

    async def close(self) -> None:
        """Do nothing: everything is lost."""

    def _drop(self, id_: str) -> bool:
        stored = self._responses.pop(id_, None)
        if stored is None:
            return False
        for part in stored.parts:
            self._references[id(part)] -= 1
            if not self._references[id(part)]:
                del self._references[id(part)]
                self.bytes -= len(part)
        return True
