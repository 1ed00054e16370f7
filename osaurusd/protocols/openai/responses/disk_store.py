"""Stored objects that survive a restart of the daemon, in an SQLite database.

One thread accesses the database, so operations take effect in the order in which they were requested.
"""

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from osaurusd.log import get_logger
from osaurusd.protocols.openai.responses.store import MemoryStore, StoredObject

log = get_logger(__name__)

T = TypeVar("T")

# Objects of one conversation have most items in common, so each item is stored once.
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE IF NOT EXISTS objects (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, used_at REAL NOT NULL, body BLOB NOT NULL, input_count INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS objects_by_use ON objects (used_at);
CREATE TABLE IF NOT EXISTS items (hash BLOB PRIMARY KEY, item BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS object_items (
    object TEXT NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (object, position));
CREATE INDEX IF NOT EXISTS object_items_by_hash ON object_items (hash);
"""
_DELETE_ITEMS = """
DELETE FROM items WHERE hash IN (
    SELECT hash FROM object_items AS own WHERE object = ?1 AND NOT EXISTS (
        SELECT 1 FROM object_items AS other WHERE other.hash = own.hash AND other.object != ?1))
"""


class DiskStore:
    """Keeps objects on disk; beyond a size, those that were not used for longest are deleted.

    A database that cannot be read is moved aside. If it cannot be written, objects are kept in memory only.

    Args:
        path: the database.
        max_bytes: returns the size in force.
        memory: keeps the objects that are in use.
    """

    def __init__(self, path: Path, max_bytes: Callable[[], int], memory: MemoryStore) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._memory = memory
        self._thread = ThreadPoolExecutor(1, "responses")
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._thread.submit(self._open).add_done_callback(_log_failure)

    def put(self, stored: StoredObject) -> None:
        """Add or replace an object, which is written in the background."""
        self._memory.put(stored)
        if not self._closed:
            self._thread.submit(self._write, stored).add_done_callback(_log_failure)

    async def get(self, id_: str) -> StoredObject | None:
        """Return an object, and keep it longer."""
        stored = await self._memory.get(id_)
        if stored is None:
            read = await self._call(self._read, id_, None)
            # Meanwhile it may have been replaced.
            stored = await self._memory.get(id_) or read
            if stored is not None:
                self._memory.put(stored)
        else:
            self._thread.submit(self._touch, id_).add_done_callback(_log_failure)
        return stored

    async def delete(self, id_: str) -> bool:
        """Remove an object; returns whether there was one. Those that continue it stay complete."""
        in_memory = await self._memory.delete(id_)
        on_disk = await self._call(self._remove, id_, False)
        # Meanwhile it may have been read.
        await self._memory.delete(id_)
        return on_disk or in_memory

    async def close(self) -> None:
        """Wait until everything is written."""
        self._closed = True
        self._thread.submit(self._close).add_done_callback(_log_failure)
        await asyncio.to_thread(self._thread.shutdown)

    async def _call(self, operation: Callable[[str], T], id_: str, default: T) -> T:
        try:
            return await asyncio.wrap_future(self._thread.submit(operation, id_))
        except sqlite3.Error as error:
            _report(error)
            return default

    # In the thread

    def _open(self) -> None:
        try:
            self._connection = self._connect()
        except sqlite3.OperationalError:  # the file is not at fault
            raise
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(".damaged")
            log.warning("stored responses cannot be read; starting with none", moved_to=str(aside), reason=str(error))
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path)
        try:
            connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the database could not be opened")
        return self._connection

    def _write(self, stored: StoredObject) -> None:
        hashes = [hashlib.sha256(item).digest() for item in stored.items]
        with self._database as database:
            self._delete_row(stored.id)
            row = (stored.id, stored.owner, time.time(), stored.body, len(stored.input))
            database.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?)", row)
            database.executemany("INSERT OR IGNORE INTO items VALUES (?, ?)", zip(hashes, stored.items, strict=True))
            rows = [(stored.id, position, hash_) for position, hash_ in enumerate(hashes)]
            database.executemany("INSERT INTO object_items VALUES (?, ?, ?)", rows)
        self._shrink()

    def _shrink(self) -> None:
        """Delete objects until the database has the permitted size."""
        while self._size() > self._max_bytes():
            oldest = self._database.execute("SELECT id FROM objects ORDER BY used_at LIMIT 1").fetchone()
            if oldest is None:
                return
            self._remove(oldest[0])

    def _size(self) -> int:
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _read(self, id_: str) -> StoredObject | None:
        row = self._database.execute("SELECT body, input_count, owner FROM objects WHERE id = ?", (id_,)).fetchone()
        if row is None:
            return None
        items = self._database.execute(
            "SELECT item FROM object_items JOIN items USING (hash) WHERE object = ? ORDER BY position", (id_,)
        )
        body, input_count, owner = row
        parts = tuple(item for (item,) in items)
        self._touch(id_)
        return StoredObject(id_, body, parts[:input_count], parts[input_count:], owner)

    def _touch(self, id_: str) -> None:
        with self._database as database:
            database.execute("UPDATE objects SET used_at = ? WHERE id = ?", (time.time(), id_))

    def _remove(self, id_: str) -> bool:
        with self._database as database:
            removed = self._delete_row(id_)
        database.execute("PRAGMA incremental_vacuum").fetchall()
        return removed

    def _delete_row(self, id_: str) -> bool:
        self._database.execute(_DELETE_ITEMS, (id_,))
        self._database.execute("DELETE FROM object_items WHERE object = ?", (id_,))
        return self._database.execute("DELETE FROM objects WHERE id = ?", (id_,)).rowcount > 0


def _log_failure(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        _report(error)


def _report(error: BaseException) -> None:
    log.warning("stored responses cannot be accessed on disk", reason=str(error))
