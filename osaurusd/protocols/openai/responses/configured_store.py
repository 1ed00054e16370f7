"""The configured store of responses."""

from pathlib import Path

from osaurusd.config import LiveConfig
from osaurusd.protocols.openai.responses.store import MemoryStore, ObjectStore


def create_store(config: LiveConfig, database: Path, memory: MemoryStore) -> ObjectStore:
    """Create the configured store; `memory` is the one without a database."""
    if config.current.responses.store == "memory":
        return memory
    # By default, the daemon needs no SQLite.
    from osaurusd.protocols.openai.responses.disk_store import DiskStore  # noqa: PLC0415

    return DiskStore(database, lambda: config.current.responses.max_disk_bytes, memory)
