"""Admin API types for importing models, finding out which ones can be imported, and quantizing models."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from osaurusd.wire.admin import ImportErrorEvent, ImportEvent, ImportProgress, ModelInfo
from osaurusd.wire.lineage import Lineage


class ImportRoute(StrEnum):
    """Paths of the admin API."""

    QUANTIZATIONS = "/v0/quantizations"
    CHECKS = "/v0/imports/check"


class CheckItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model to check.

    Attributes:
        format: of the model.
        file: the offered name of the GGUF file, or of the folder's `config.json`.
        names: the names of all files in the folder of an MLX model.
    """

    format: Literal["gguf", "mlx"]
    file: str
    names: list[str] = []


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Find out which models can be imported. `files` is a Unix socket as in `ImportRequest`."""

    items: Annotated[list[CheckItem], msgspec.Meta(max_length=1000)]
    files: str


class CheckedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the header of a model reveals. `reason` states why it cannot be imported; null if it can."""

    architecture: str | None = None
    quantization: str | None = None
    reason: str | None = None


class ImportNote(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="note"):
    """What is not taken over from the source, is missing, or was added."""

    text: str


class QuantizeDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last line of a successful quantization. `base_bytes` is the size of the original model on disk."""

    model: ModelInfo
    base_bytes: int
    lineage: Lineage


ImportStreamEvent = ImportEvent | ImportNote

QuantizeEvent = ImportProgress | ImportNote | QuantizeDone | ImportErrorEvent
