"""Admin API types for API keys and access over TCP."""

from enum import StrEnum
from typing import Annotated

import msgspec

# Control characters could take over the terminal that lists the keys.
KeyName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[^\x00-\x1f\x7f-\x9f]+\Z")]


class KeyRoute(StrEnum):
    """Paths of the admin API."""

    KEYS = "/v0/keys"
    REVOKE = "/v0/keys/revoke"


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Create a key. `name` says who or what uses it."""

    name: KeyName | None = None


class RevokeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Revoke the key with this id."""

    id: str


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. Times are Unix seconds; `last_used` is rounded down to the hour."""

    id: str
    name: str | None
    created: int
    last_used: int | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key. `key` is the secret that clients send; it is shown only once."""

    id: str
    name: str | None
    created: int
    key: str


class Protection(msgspec.Struct, frozen=True, kw_only=True):
    """Access over TCP.

    Attributes:
        exposed: whether other machines can connect.
        key_required: whether clients must send an API key.
        trusts_loopback: whether loopback clients need no key even if `key_required` is set.
        keys: number of API keys.
        tls: whether TLS is on.
    """

    exposed: bool = False
    key_required: bool = False
    trusts_loopback: bool = False
    keys: int = 0
    tls: bool = False
