"""OpenAI's error format."""

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.http.errors import error_body
from osaurusd.wire.errors import ErrorEnvelope


def error_event(error: OsaurusError) -> bytes:
    """Render an error that ends a stream."""
    return msgspec.json.encode(ErrorEnvelope(error_body(error)))
