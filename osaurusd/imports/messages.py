"""Messages between the import processes and the daemon."""

import msgspec

from osaurusd.rpc.framing import Frame
from osaurusd.wire.imports import CheckedModel
from osaurusd.wire.lineage import QuantizationMode
from osaurusd.wire.quantization import QuantizationReport


class Progress(Frame, frozen=True, tag="progress"):
    """`done` of `total` bytes of a stage."""

    stage: str
    done: int
    total: int


class Imported(Frame, frozen=True, tag="imported"):
    """The model folder is complete. `quantization` is None unless a GGUF file was imported."""

    quantization: QuantizationReport | None = None


class ImportFailure(Frame, frozen=True, tag="import_failure"):
    message: str


class Note(Frame, frozen=True, tag="note"):
    """What is not taken over from the source, is missing, or was added."""

    text: str


class Checked(Frame, frozen=True, tag="checked"):
    """Which models can be imported, in the order of the request."""

    models: list[CheckedModel]


Event = Progress | Note | Imported
"""What the daemon passes on while a child process works."""

FromImporter = Progress | Note | Checked | Imported | ImportFailure

FROM_IMPORTER: msgspec.json.Decoder[FromImporter] = msgspec.json.Decoder(FromImporter)


class QuantizationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to quantize a model. MLX has defaults for `bits` and `group_size`, and other modes than affine fix both."""

    mode: QuantizationMode = QuantizationMode.AFFINE
    bits: int | None = None
    group_size: int | None = None
    requantize: bool = False


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The model that a quantization was made from: its repository or folder name, and its revision on the hub."""

    name: str
    commit: str | None = None
    license: str | None = None


class QuantizationTask(msgspec.Struct, frozen=True, kw_only=True):
    """What the quantizer receives as an argument."""

    settings: QuantizationSettings
    base: Base
