"""What the daemon and the process that copies a model from another host tell each other."""

import msgspec

from osaurusd.downloads.messages import Failure, Progress
from osaurusd.hosts.registry import Host
from osaurusd.rpc.framing import Frame
from osaurusd.wire.placement import ManifestFile


class CopyTask(msgspec.Struct, frozen=True, kw_only=True):
    """Copy files of a model from a host into a folder.

    Attributes:
        host: the paired host.
        identity: a file with this host's certificate and key.
        model: the name of the model there.
        folder: where the files belong in the end. If it exists, it is a copy of the same model.
        staging: the folder for partial files, on the same volume.
        digest: that of the manifest.
        connections, stall_seconds, retry_seconds, margin_bytes: as in `[pulls]`.
    """

    host: Host
    model: str
    folder: str
    staging: str
    digest: str
    files: list[ManifestFile]
    identity: str
    connections: int = 4
    stall_seconds: float = 30.0
    retry_seconds: float = 1800.0
    margin_bytes: int = 0


class Copied(Frame, frozen=True, tag="copied"):
    """All files are in the folder."""


Message = Progress | Copied | Failure

DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
