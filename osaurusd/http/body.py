"""JSON bodies: reading them into typed objects, and writing typed objects."""

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from osaurusd.config import Input
from osaurusd.errors import InvalidJson, InvalidRequest, UnsupportedMediaType
from osaurusd.http import keys, strict

T = TypeVar("T")

_LIMITS = Input()
# ASCII is part of UTF-8.
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_SOURCE_FIELDS = re.compile(r"^Object (?P<what>missing required|contains unknown) field `(?P<field>[^`]*)`")


async def read(request: web.Request, kind: type[T]) -> T:
    """The request's body as a `kind`, within the limits in force.

    Raises:
        UnsupportedMediaType: it is in an encoding other than UTF-8.
        InvalidJson: it is no JSON, or nested too deeply.
        InvalidRequest: a value has the wrong type or is out of range, or a key is repeated; `param` is its path.
    """
    if (request.charset or "utf-8").lower() not in _CHARSETS:
        raise UnsupportedMediaType(f"the body must be sent as UTF-8, not {request.charset!r}")
    settings = request.app.get(keys.SETTINGS)
    return decode(await request.read(), kind, settings.config.input if settings else Input())


def decode(body: bytes, kind: type[T], limits: Input = _LIMITS) -> T:
    """`body` as a `kind`; raises as `read` does."""
    content = strict.text(body)
    outline = strict.check_size(body, limits)
    try:
        value = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidJson(f"the body is not valid JSON: {strict.reason(content, error)}") from error
    except RecursionError as error:
        raise InvalidJson("the body is not acceptable JSON: it is nested too deeply") from error
    strict.check_depth(outline, limits)
    strict.check_keys(content)
    return value


def _invalid(text: str) -> InvalidRequest:
    """msgspec's message, with the path of the field in front."""
    found = _AT.match(text)
    what, path = (found["what"], found["path"] or "") if found else (text, "")
    if fields := _SOURCE_FIELDS.match(what):
        path = f"{path}.{fields['field']}"
        what = "is required" if fields["what"] == "missing required" else "is not a field of this request"
    param = path.lstrip(".") or None
    what = what[:1].lower() + what[1:]
    return InvalidRequest(f"`{param}`: {what}" if param else f"the body: {what}", param=param)


def reply(value: object, *, status: int = 200) -> web.Response:
    """An answer that is `value` as JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
