"""API keys as the admin API shows them, and who gets in over TCP."""

from enum import StrEnum
from typing import Annotated

import msgspec

# Control characters would move the cursor of whoever lists the keys.
KeyName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[^\x00-\x1f\x7f-\x9f]+\Z")]


class KeyRoute(StrEnum):
    """Paths of the admin API."""

    KEYS = "/v0/keys"
    REVOKE = "/v0/keys/revoke"


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make a key; `name` says whose it is or what for."""

    name: KeyName | None = None


class RevokeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let the key with this id no longer be accepted."""

    id: str


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key without what is secret of it. Times are unix seconds; `last_used` is the beginning of an hour."""

    id: str
    name: str | None
    created: int
    last_used: int | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was just made. `key` is what clients send; this is the only time that it can be seen."""

    id: str
    name: str | None
    created: int
    key: str


class Protection(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets in over TCP.

    `exposed`: other machines can connect. `key_required`: clients must send one of the `keys` keys there are, but for
    those on this machine if `trusts_loopback`.
    """

    exposed: bool = False
    key_required: bool = False
    trusts_loopback: bool = False
    keys: int = 0
    tls: bool = False
