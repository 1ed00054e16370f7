"""Errors of OpenAI's routes in the middle of a stream."""

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.http.errors import error_body
from osaurusd.inference import field_paths
from osaurusd.wire.errors import ErrorEnvelope


class FieldPaths(field_paths.FieldPaths):
    """The fields of OpenAI's request bodies."""

    def error_event(self, error: OsaurusError) -> bytes:
        """Render an error that occurs in the middle of a stream."""
        return msgspec.json.encode(ErrorEnvelope(error_body(self.name_field(error))))
