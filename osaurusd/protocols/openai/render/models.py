"""Models as the API lists them."""

from typing import Literal

import msgspec

from osaurusd.models.record import ModelRecord


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["osaurus"] = "osaurus"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


def model(record: ModelRecord, name: str) -> Model:
    """A model as the API lists it under one of its names."""
    return Model(id=name, created=record.created)
