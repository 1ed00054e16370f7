"""Messages from the maintenance process to the daemon."""

import msgspec

from osaurusd.rpc.framing import Frame
from osaurusd.wire.admin import VerifiedFile


class Removal(Frame, frozen=True, tag="removal"):
    """The bytes that a removal freed, or would free."""

    freed_bytes: int


class Hashing(Frame, frozen=True, tag="hashing"):
    """`done` of `total` bytes of a model are hashed; `file` is the current file."""

    file: str
    done: int
    total: int


class Verification(Frame, frozen=True, tag="verification"):
    """How each file of a model compares with its recorded digest."""

    files: list[VerifiedFile]


class Digests(Frame, frozen=True, tag="digests"):
    """The SHA-256 of files by name, in hex."""

    digests: dict[str, str]


class Failure(Frame, frozen=True, tag="failure"):
    message: str


Message = Removal | Hashing | Verification | Digests | Failure

DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
