"""JSON bodies: decode requests into typed objects, and encode responses."""

import asyncio
import re
import time
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from aiohttp import web

from osaurusd.conversion import LARGE_BODY_BYTES, collection_paused, estimate
from osaurusd.errors import InvalidJson, InvalidRequest, UnsupportedMediaType
from osaurusd.http.request import read_body
from osaurusd.json_text import replace_lone_surrogates
from osaurusd.wire.errors import as_json, explain_as_json

T = TypeVar("T")

# How long a list is encoded before other tasks run.
_MAX_LOOP_SECONDS = 0.005

_SURROGATE_ESCAPES = (rb"\ud", rb"\uD")

# Objects within objects, such as options, whose numbers may be whole floats. Longer lists and schemas are deeper.
_OPTIONS_DEPTH = 2

_UTF8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_FLOAT = "got `float`"
_MESSAGE = re.compile(r"^(?P<reason>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_FIELD_MESSAGE = re.compile(r"^Object (?P<reason>missing required|contains unknown) field `(?P<field>[^`]*)`")

_TYPES = re.compile(r"`[a-z]+(?: \| [a-z]+)*`")
_JSON_TYPES = {"bool": "boolean", "float": "number", "int": "integer", "str": "string"}


async def read_json(request: web.Request, type_: type[T]) -> T:
    """Read the request's body and decode it; raises what `read_body` and `decode_body` raise.

    Raises:
        UnsupportedMediaType: the body is declared in a charset other than UTF-8.
    """
    if (request.charset or "utf-8").lower() not in _UTF8:
        raise UnsupportedMediaType(f"the body must be UTF-8, not {as_json(request.charset)}")
    return await decode_body(await read_body(request), type_)


async def decode_body(body: bytes | bytearray, type_: type[T]) -> T:
    """Decode the content of a request like `decode_json`, and let other tasks run if it is large."""
    estimate(body)
    if len(body) <= LARGE_BODY_BYTES:
        return decode_json(body, type_)
    has_surrogates = any(escape in body for escape in _SURROGATE_ESCAPES)
    # Other tasks run before and after what takes some milliseconds.
    await asyncio.sleep(0)
    if has_surrogates:
        # Their repair takes long.
        return await asyncio.to_thread(_decode_large, body, type_)
    value = _decode_large(body, type_)
    del body  # now, because the value contains its texts
    await asyncio.sleep(0)
    return value


def _decode_large(body: bytes | bytearray, type_: type[T]) -> T:
    with collection_paused():
        return decode_json(body, type_)


def decode_json(body: bytes | bytearray, type_: type[T]) -> T:
    """Decode and validate JSON in one pass. Halves of surrogate pairs become U+FFFD, whole floats integers.

    Raises:
        InvalidJson: the body is not JSON, or is nested too deeply for the decoder's stack.
        InvalidRequest: a value has the wrong type or is out of range; `param` is its path.
    """
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        if _FLOAT in str(error):
            return convert_json(_with_integers(msgspec.json.decode(body)), type_, "")
        raise _validation_error(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        repaired = replace_lone_surrogates(bytes(body))
        if repaired != body:
            return decode_json(repaired, type_)
        raise InvalidJson(f"the request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidJson("the request body is nested too deeply") from error


def convert_json(value: object, type_: type[T], path: str) -> T:
    """Convert a part of a decoded body to a type.

    Raises:
        InvalidRequest: a value has the wrong type or is out of range; `param` is its path, which begins with `path`.
    """
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), path) from error


def _with_integers(value: object, depth: int = _OPTIONS_DEPTH) -> object:
    """Return a decoded object with integers in place of whole floats: Lua and others write every number as a float."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict) and depth >= 0:
        return {key: _with_integers(each, depth - 1) for key, each in value.items()}
    return value


def json_response(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def encode_list(items: Iterable[object]) -> msgspec.Raw:
    """Encode a long list, which may be computed meanwhile, without holding the event loop for long.

    msgspec encodes the result as it is.
    """
    encoded = []
    resumed_at = time.monotonic()
    for item in items:
        encoded.append(msgspec.json.encode(item))
        if time.monotonic() - resumed_at > _MAX_LOOP_SECONDS:
            await asyncio.sleep(0)
            resumed_at = time.monotonic()
    return msgspec.Raw(b"[" + b",".join(encoded) + b"]")


def _validation_error(text: str, prefix: str = "") -> InvalidRequest:
    """Convert msgspec's message to one that begins with the path of the field."""
    match = _MESSAGE.match(text)
    reason, path = (match["reason"], match["path"] or "") if match else (text, "")
    path = prefix + path
    if field_match := _FIELD_MESSAGE.match(reason):
        path = f"{path}.{field_match['field']}"
        reason = "is required" if field_match["reason"] == "missing required" else "is not a field of this request"
    param = path.lstrip(".") or None
    reason = _TYPES.sub(_name_json_types, explain_as_json(reason[:1].lower() + reason[1:]))
    return InvalidRequest(f"`{param}`: {reason}" if param else f"the request body: {reason}", param=param)


def _name_json_types(match: re.Match[str]) -> str:
    """Replace Python's names of types, which msgspec uses, by those of JSON."""
    return re.sub(r"[a-z]+", lambda name: _JSON_TYPES.get(name[0], name[0]), match[0])
