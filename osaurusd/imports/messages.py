"""Messages from the import process to the daemon."""

import msgspec

from osaurusd.rpc.messages import Frame
from osaurusd.wire.quantization import QuantizationReport


class Progress(Frame, frozen=True, tag="progress"):
    """`done` of `total` bytes of a stage."""

    stage: str
    done: int
    total: int


class Imported(Frame, frozen=True, tag="imported"):
    """The model folder is complete. `quantization` is None if nothing was converted to a quantized format."""

    quantization: QuantizationReport | None = None


class ImportFailure(Frame, frozen=True, tag="import_failure"):
    message: str


FromImporter = Progress | Imported | ImportFailure

FROM_IMPORTER: msgspec.json.Decoder[FromImporter] = msgspec.json.Decoder(FromImporter)
