"""The API keys that are accepted, kept as digests."""

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
from osaurusd.platform.state import StateFile
from osaurusd.wire.keys import KeyInfo, NewKey

log = get_logger(__name__)

VERSION = 1

PREFIX = "sk-osaurus-"
"""What every key begins with: clients that check take `sk-`, and scanners for leaked secrets find it."""

_ALPHABET = string.ascii_letters + string.digits
_RANDOM_CHARACTERS = 43  # of 62 kinds: 256 bits
_HOUR = 3600


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a key.

    SHA-256 and no slow function: a key is 256 random bits, which nobody guesses however fast guessing is, and every
    request has to be looked up.
    """

    id: str
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created: int
    name: str | None = None
    last_used: int | None = None


class _State(msgspec.Struct, kw_only=True):
    """The file's content, oldest key first."""

    version: int = VERSION
    keys: list[_Key] = []


class Keyring:
    """The keys, kept in one file. What changes it blocks, and may be called from any thread.

    Args:
        file: where they are kept; one that cannot be used is moved aside, which `fault` says, and no key is accepted.
        clock: unix seconds.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = file
        self._file = StateFile(file, _State())
        self._clock = clock
        # Replaced as a whole, so that readers need no lock.
        self._keys = tuple(self._file.read().keys)
        self._used: dict[str, int] = {}
        self._lock = threading.Lock()
        self.fault = self._file.fault

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def all(self) -> list[KeyInfo]:
        """The keys, oldest first."""
        return [_info(self._with_use(key)) for key in self._keys]

    def create(self, name: str | None = None) -> NewKey:
        """Make a key, which is accepted once this returns.

        Raises:
            InternalError: it could not be kept, and does not exist.
        """
        secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
        key = _Key(id=secrets.token_hex(4), sha256=_digest(secret), created=int(self._clock()), name=name)
        with self._lock:
            keys = (*self._keys, key)
            try:
                self._write(keys)
            except OSError as error:
                raise InternalError(f"no key was made, for {self._path} could not be written: {error}") from error
            self._keys = keys
        log.info("API key created", id=key.id, name=name)
        return NewKey(id=key.id, name=name, created=key.created, key=secret)

    def revoke(self, key_id: str) -> KeyInfo:
        """Accept a key no longer, from now on.

        Raises:
            NotFound: there is none with this id.
            InternalError: it is refused now, but would be accepted again after a restart.
        """
        with self._lock:
            gone = next((key for key in self._keys if key.id == key_id), None)
            if gone is None:
                raise NotFound(f"there is no API key with the id `{key_id}`", param="id")
            self._keys = tuple(key for key in self._keys if key is not gone)
            log.info("API key revoked", id=gone.id, name=gone.name)
            try:
                self._write(self._keys)
            except OSError as error:
                raise InternalError(
                    f"the key is refused from now on, but {self._path} could not be written ({error}), and after a "
                    "restart it would be accepted again"
                ) from error
        return _info(self._with_use(gone))

    def find(self, secret: str) -> str | None:
        """The id of the key that this is, or None.

        Digests are compared, each in constant time and all of them: how long it takes tells nothing about any key.
        """
        digest, found = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key.id
        return found

    def note_use(self, key_id: str) -> bool:
        """A request came with this key; returns whether that is worth saving: once an hour."""
        hour = int(self._clock()) // _HOUR * _HOUR
        if any(key.id == key_id and self._with_use(key).last_used == hour for key in self._keys):
            return False
        self._used[key_id] = hour
        return True

    def save(self) -> None:
        """Write down when keys were used.

        Raises:
            OSError: it could not be written.
        """
        with self._lock:
            self._write(self._keys)

    def _write(self, keys: tuple[_Key, ...]) -> None:
        """Under the lock, so that what is written last is what holds."""
        self._file.write(_State(keys=[self._with_use(key) for key in keys]))

    def _with_use(self, key: _Key) -> _Key:
        return msgspec.structs.replace(key, last_used=self._used.get(key.id, key.last_used))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _info(key: _Key) -> KeyInfo:
    return KeyInfo(id=key.id, name=key.name, created=key.created, last_used=key.last_used)
