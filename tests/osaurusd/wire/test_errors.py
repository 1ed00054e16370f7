"""The codes are API: this list only ever grows."""

import msgspec

from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

PROMISED = {
    "busy",
    "config_error",
    "context_length_exceeded",
    "forbidden",
    "home_in_use",
    "image_input_unsupported",
    "import_failed",
    "pull_failed",
    "disk_full",
    "insufficient_memory",
    "internal_error",
    "invalid_api_key",
    "invalid_json",
    "invalid_request",
    "listen_failed",
    "load_failed",
    "malformed_request",
    "request_timeout",
    "uri_too_long",
    "expectation_failed",
    "headers_too_large",
    "not_implemented",
    "unsupported_encoding",
    "too_many_requests",
    "too_many_connections",
    "time_limit_exceeded",
    "method_not_allowed",
    "model_not_downloaded",
    "model_not_found",
    "model_unloaded",
    "name_taken",
    "not_found",
    "queue_full",
    "request_exceeds_memory",
    "request_too_large",
    "shutting_down",
    "not_serving",
    "slow_client",
    "unsupported_media_type",
    "unsupported_parameter",
    "version_mismatch",
    "worker_crashed",
}


def test_every_promised_code_is_there_and_no_other():
    assert {str(code) for code in ErrorCode} == PROMISED


def test_a_code_travels_as_its_text():
    assert msgspec.json.encode(ErrorCode.BUSY) == b'"busy"'


def test_the_envelope_always_has_openais_four_keys():
    envelope = ErrorEnvelope(ErrorBody(message="m", type="server_error"))
    assert msgspec.json.encode(envelope) == b'{"error":{"message":"m","type":"server_error","param":null,"code":null}}'


def test_the_envelope_is_read_back_even_with_a_code_from_the_future():
    sent = b'{"error":{"message":"m","type":"t","param":"p","code":"not_known_yet","more":1},"more":1}'
    body = ErrorBody(message="m", type="t", param="p", code="not_known_yet")
    assert msgspec.json.decode(sent, type=ErrorEnvelope) == ErrorEnvelope(body)
