"""JSON bodies: reading them into typed objects, and writing typed objects."""

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from osaurusd.errors import InvalidJson, InvalidRequest

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_SOURCE_FIELDS = re.compile(r"^Object (?P<what>missing required|contains unknown) field `(?P<field>[^`]*)`")


async def read(request: web.Request, kind: type[T]) -> T:
    """The request's body as a `kind`.

    Raises:
        InvalidJson: it is no JSON.
        InvalidRequest: a value has the wrong type or is out of range; `param` is its path.
    """
    return decode(await request.read(), kind)


def decode(body: bytes, kind: type[T]) -> T:
    """`body` as a `kind`; raises as `read` does."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidJson("the body is not acceptable JSON: it is nested too deeply") from error


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
