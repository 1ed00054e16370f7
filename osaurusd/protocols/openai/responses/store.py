"""Stored responses and conversations: what clients can retrieve and continue."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from osaurusd.protocols.openai.responses.types import Item

_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(Item).decode


class StoredObject(msgspec.Struct, frozen=True):
    """A final response or a conversation. Those that continue each other share the items that they have in common.

    Attributes:
        body: the object as JSON, for a conversation without its items.
        input: the items before the output, also those of earlier responses, oldest first.
        owner: who may use it; see `Scope`.
    """

    id: str
    body: bytes
    input: tuple[bytes, ...] = ()
    output: tuple[bytes, ...] = ()
    owner: str = ""

    @property
    def items(self) -> tuple[bytes, ...]:
        """All items, oldest first."""
        return (*self.input, *self.output)

    @property
    def parts(self) -> Iterator[bytes]:
        yield self.body
        yield from self.input
        yield from self.output


def encode_items(items: Sequence[Item]) -> tuple[bytes, ...]:
    return tuple(_encode(item) for item in items)


def decode_items(items: Sequence[bytes]) -> list[Item]:
    return [_decode_item(item) for item in items]


class ObjectStore(Protocol):
    """Keeps objects by their ids."""

    def put(self, stored: StoredObject) -> None:
        """Add or replace an object."""

    async def get(self, id_: str) -> StoredObject | None:
        """Return an object, and keep it longer."""

    async def delete(self, id_: str) -> bool:
        """Remove an object; returns whether there was one. Those that continue it stay complete."""

    async def close(self) -> None:
        """Wait until everything is written."""


class MemoryStore:
    """Keeps objects in memory; when they exceed a size, those that were not used for longest are dropped.

    Args:
        max_bytes: returns the size in force.
    """

    def __init__(self, max_bytes: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._objects: OrderedDict[str, StoredObject] = OrderedDict()
        # Of each part that some object has: how many do. The parts live as long as their objects.
        self._references: Counter[int] = Counter()
        self.bytes = 0

    def put(self, stored: StoredObject) -> None:
        """Add or replace an object."""
        self._drop(stored.id)
        self._objects[stored.id] = stored
        for part in stored.parts:
            if not self._references[id(part)]:
                self.bytes += len(part)
            self._references[id(part)] += 1
        while self.bytes > self._max_bytes() and self._objects:
            self._drop(next(iter(self._objects)))

    async def get(self, id_: str) -> StoredObject | None:
        """Return an object, and keep it longer."""
        stored = self._objects.get(id_)
        if stored is not None:
            self._objects.move_to_end(id_)
        return stored

    async def delete(self, id_: str) -> bool:
        """Remove an object; returns whether there was one. Those that continue it stay complete."""
        return self._drop(id_)

    async def close(self) -> None:
        """Do nothing: everything is lost."""

    def _drop(self, id_: str) -> bool:
        stored = self._objects.pop(id_, None)
        if stored is None:
            return False
        for part in stored.parts:
            self._references[id(part)] -= 1
            if not self._references[id(part)]:
                del self._references[id(part)]
                self.bytes -= len(part)
        return True


class Scope:
    """The stored objects that one client may use: those of its owner, which is the API key, or empty without one.

    Args:
        store: keeps the objects of all owners.
        owner: the owner.
    """

    def __init__(self, store: ObjectStore, owner: str) -> None:
        self._store = store
        self._owner = owner

    def put(self, stored: StoredObject) -> None:
        """Add or replace an object, which then belongs to the owner."""
        self._store.put(replace(stored, owner=self._owner))

    async def get(self, id_: str) -> StoredObject | None:
        """Return an object, and keep it longer."""
        stored = await self._store.get(id_)
        return stored if stored is not None and stored.owner == self._owner else None

    async def delete(self, id_: str) -> bool:
        """Remove an object; returns whether there was one."""
        return await self.get(id_) is not None and await self._store.delete(id_)
