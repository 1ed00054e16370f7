"""The keys of the configuration as data: for documentation, completion and reloads."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from osaurusd.config.keys import Section
from osaurusd.config.schema import Config


class Setting(msgspec.Struct, frozen=True):
    """One key as the documentation shows it.

    Attributes:
        key: dotted path in the file.
        default: value when the key is not set.
        type: Python type without metadata.
        unit: unit of the value, if it has one.
        range: accepted values, such as `1 to 65536`, `> 0`, or the choices; empty if any value of the type is accepted.
        description: one line without a final full stop.
        needs_restart: whether a change takes effect only after a restart.
    """

    key: str
    default: object
    type: Any
    unit: str | None
    range: str
    description: str
    needs_restart: bool


def settings(section: type[Section] = Config, prefix: str = "") -> Iterator[Setting]:
    """Every key of the file, in order."""
    for field in msgspec.structs.fields(section):
        if is_section(field.type):
            yield from settings(field.type, f"{prefix}{field.name}.")
            continue
        kind, meta = _split(field.type)
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        extra = meta.extra or {}
        yield Setting(
            key=prefix + field.name,
            default=default,
            type=kind,
            unit=extra.get("unit"),
            range=_range(kind, meta),
            description=meta.description or "",
            needs_restart=extra.get("restart", False),
        )


def known_keys() -> Iterator[str]:
    """Every dotted key of the file, in order."""
    return (setting.key for setting in settings())


def value_of(config: Config, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def is_section(kind: Any) -> bool:
    """Whether the type of a field is a table of the file."""
    return isinstance(kind, type) and issubclass(kind, Section)


def plain_type(kind: Any) -> Any:
    """The type of a field without its metadata."""
    return _split(kind)[0]


def _split(annotation: Any) -> tuple[Any, msgspec.Meta]:
    """The type and the metadata of `Annotated[T, meta]` or `Annotated[T, meta] | None`."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for member in members:
        if get_origin(member) is Annotated:
            plain, meta = get_args(member)
            return (plain | None if type(None) in members else plain), meta
    return annotation, msgspec.Meta()


def _range(kind: Any, meta: msgspec.Meta) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    low = f"> {meta.gt:g}" if meta.gt is not None else f"≥ {meta.ge:g}" if meta.ge is not None else ""
    if meta.le is None:
        return low
    return f"{low}, ≤ {meta.le}" if meta.ge is None else f"{meta.ge} to {meta.le}"


NEEDS_RESTART = frozenset(setting.key for setting in settings() if setting.needs_restart)
"""Keys that a running daemon cannot change."""
