"""What the OpenAPI description has about the data of the page."""

from osaurusd.http.errors import error_type
from osaurusd.http.openapi import EVENT_STREAM, Api, Operation, Schema, Stream
from osaurusd.ui.routes import SNAPSHOT, STREAM
from osaurusd.ui.types import ModelsChanged, RequestsChanged, Sample, Snapshot, WorkersChanged
from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

OPERATIONS = (
    Operation(
        "get", SNAPSHOT, "showActivity", "Show models, requests and the last hour", None, Snapshot, versioned=False
    ),
    Operation(
        "get",
        STREAM,
        "watchActivity",
        "Watch models and requests. The first event is `snapshot`",
        stream=Stream([Snapshot, WorkersChanged, ModelsChanged, RequestsChanged, Sample]),
        media_type=EVENT_STREAM,
        versioned=False,
    ),
)


def error_example(status: int, codes: list[ErrorCode]) -> ErrorEnvelope:
    """Return an error response."""
    return ErrorEnvelope(ErrorBody(message="What failed, why, and what to do.", type=error_type(status), code=codes[0]))


def error_restriction(_: int, codes: list[ErrorCode]) -> Schema:
    """Return what the error responses with a status have in common."""
    return {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}


API = Api(OPERATIONS, ErrorEnvelope, error_example, error_restriction, prefix="Ui")
