"""The accepted API keys, stored as digests."""

import hashlib
import hmac
import secrets
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from osaurusd.errors import InternalError, NotFound
from osaurusd.log import get_logger
from osaurusd.platform.state_file import StateFile
from osaurusd.wire.keys import KeyInfo, NewKey

log = get_logger(__name__)

VERSION = 1

PREFIX = "sk-osaurus-"
"""The prefix of every key: some clients insist on `sk-`, and secret scanners recognize it."""

_ALPHABET = string.ascii_letters + string.digits
_RANDOM_CHARACTERS = 43  # 62 ** 43 > 2 ** 256
_HOUR_SECONDS = 3600


class _StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret.

    A fast digest suffices: a key has 256 random bits, which cannot be guessed, and every request looks up its key.
    """

    id: str
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created: int
    name: str | None = None
    last_used: int | None = None


class _State(msgspec.Struct, kw_only=True):
    """The content of the file; the oldest key is first."""

    version: int = VERSION
    keys: list[_StoredKey] = []


class ApiKeys:
    """The keys, stored in one file. Methods that change them block, and may be called from any thread.

    Args:
        file: an unreadable file is moved aside and reported by `fault`, and no key is accepted.
        clock: Unix time in seconds.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = file
        self._file = StateFile(file, _State())
        self._clock = clock
        # Replaced as a whole, so that readers need no lock.
        self._keys = tuple(self._file.read().keys)
        self._last_used: dict[str, int] = {}
        self._lock = threading.Lock()
        self.fault = self._file.fault

    def __len__(self) -> int:
        return len(self._keys)

    def infos(self) -> list[KeyInfo]:
        """Return all keys, oldest first."""
        return [_info(self._with_last_use(key)) for key in self._keys]

    def create(self, name: str | None = None) -> NewKey:
        """Create a key; it is accepted as soon as this returns.

        Raises:
            InternalError: the key could not be saved, and is not accepted.
        """
        secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
        key = _StoredKey(id=secrets.token_hex(4), sha256=_digest(secret), created=int(self._clock()), name=name)
        with self._lock:
            keys = (*self._keys, key)
            try:
                self._write(keys)
            except OSError as error:
                raise InternalError(f"cannot create a key: {self._path} cannot be written: {error}") from error
            self._keys = keys
        log.info("API key created", id=key.id, name=name)
        return NewKey(id=key.id, name=name, created=key.created, key=secret)

    def revoke(self, key_id: str) -> KeyInfo:
        """Stop accepting a key immediately.

        Raises:
            NotFound: no key has this id.
            InternalError: the change could not be saved; the key is accepted again after a restart.
        """
        with self._lock:
            revoked = next((key for key in self._keys if key.id == key_id), None)
            if revoked is None:
                raise NotFound(f"no API key has the id `{key_id}`", param="id")
            self._keys = tuple(key for key in self._keys if key is not revoked)
            log.info("API key revoked", id=revoked.id, name=revoked.name)
            try:
                self._write(self._keys)
            except OSError as error:
                raise InternalError(
                    f"the key is revoked until the daemon restarts: {self._path} cannot be written: {error}"
                ) from error
        return _info(self._with_last_use(revoked))

    def find(self, secret: str) -> str | None:
        """Return the id of a key, or None if it is not accepted.

        Every stored digest is compared in constant time, so that the duration reveals nothing about any key.
        """
        digest, key_id = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                key_id = key.id
        return key_id

    def record_use(self, key_id: str) -> bool:
        """Record that a key was used now.

        Returns:
            Whether `save` is due: the recorded time changes once an hour.
        """
        hour = int(self._clock()) // _HOUR_SECONDS * _HOUR_SECONDS
        if any(key.id == key_id and self._with_last_use(key).last_used == hour for key in self._keys):
            return False
        self._last_used[key_id] = hour
        return True

    def save(self) -> None:
        """Save when keys were last used.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            self._write(self._keys)

    def _write(self, keys: tuple[_StoredKey, ...]) -> None:
        """Write the file; the caller holds the lock, so that the last write has the newest keys."""
        self._file.write(_State(keys=[self._with_last_use(key) for key in keys]))

    def _with_last_use(self, key: _StoredKey) -> _StoredKey:
        return msgspec.structs.replace(key, last_used=self._last_used.get(key.id, key.last_used))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _info(key: _StoredKey) -> KeyInfo:
    return KeyInfo(id=key.id, name=key.name, created=key.created, last_used=key.last_used)
