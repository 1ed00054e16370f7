"""How the configuration schema describes a key: its range, its unit and its description."""

import msgspec

DAY = 86_400
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables in the configuration file."""


def setting(
    description: str,
    *,
    unit: str | None = None,
    restart: bool = False,
    gt: float | None = None,
    ge: float | None = None,
    le: float | None = None,
) -> msgspec.Meta:
    """Describe one key.

    Args:
        description: one line for the documentation, without a final full stop.
        unit: unit of the value.
        restart: whether a change takes effect only after a restart.
        gt, ge, le: range of the value.
    """
    extra = {"unit": unit, "restart": restart}
    if gt is not None:
        return msgspec.Meta(description=description, extra=extra, gt=gt, le=le)
    return msgspec.Meta(description=description, extra=extra, ge=ge, le=le)


def seconds(description: str, *, gt: float | None = None, ge: float | None = None, le: float = DAY) -> msgspec.Meta:
    return setting(description, unit="seconds", gt=gt, ge=ge, le=le)


def size(description: str, *, ge: int = 1, le: int | None = None) -> msgspec.Meta:
    return setting(description, unit="bytes", ge=ge, le=le)


def count(description: str, *, unit: str | None = None, ge: int = 1, le: int | None = None) -> msgspec.Meta:
    return setting(description, unit=unit, ge=ge, le=le)
