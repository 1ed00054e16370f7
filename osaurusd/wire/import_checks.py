"""Admin API types for finding out which models of other programs can be imported."""

from typing import Annotated, Literal

import msgspec


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
