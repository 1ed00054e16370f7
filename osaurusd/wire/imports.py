"""Admin API types for quantizing models, and for importing those of other programs."""

from enum import StrEnum

import msgspec

from osaurusd.wire.admin import ImportErrorEvent, ImportEvent, ImportProgress, ModelInfo
from osaurusd.wire.lineage import Lineage


class ImportRoute(StrEnum):
    """Paths of the admin API."""

    QUANTIZATIONS = "/v0/quantizations"
    CHECKS = "/v0/imports/check"


class ImportNote(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="note"):
    """Something that an import or a quantization does not take over from its source."""

    text: str


class QuantizeDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last line of a successful quantization. `base_bytes` is the size of the original model on disk."""

    model: ModelInfo
    base_bytes: int
    lineage: Lineage


ImportStreamEvent = ImportEvent | ImportNote

QuantizeEvent = ImportProgress | ImportNote | QuantizeDone | ImportErrorEvent
