"""Error codes are public API: none may be renamed or removed."""

import msgspec
import pytest

from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope, as_json, explain_as_json

PUBLIC_CODES = {
    "draining",
    "busy",
    "config_error",
    "context_length_exceeded",
    "forbidden",
    "home_in_use",
    "host_lost",
    "host_name_taken",
    "host_not_found",
    "host_unreachable",
    "pairing_failed",
    "image_input_unsupported",
    "import_failed",
    "quantization_failed",
    "pull_failed",
    "disk_full",
    "insufficient_memory",
    "internal_error",
    "invalid_api_key",
    "invalid_json",
    "invalid_request",
    "listen_failed",
    "load_failed",
    "previous_response_not_found",
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


def test_the_public_codes_are_stable():
    assert {str(code) for code in ErrorCode} == PUBLIC_CODES


def test_a_code_is_encoded_as_its_text():
    assert msgspec.json.encode(ErrorCode.BUSY) == b'"busy"'


def test_the_envelope_always_has_the_four_keys_of_openai():
    envelope = ErrorEnvelope(ErrorBody(message="m", type="server_error"))
    assert msgspec.json.encode(envelope) == b'{"error":{"message":"m","type":"server_error","param":null,"code":null}}'


def test_the_envelope_is_decoded_even_with_an_unknown_code():
    sent = b'{"error":{"message":"m","type":"t","param":"p","code":"added_later","more":1},"more":1}'
    body = ErrorBody(message="m", type="t", param="p", code="added_later")
    assert msgspec.json.decode(sent, type=ErrorEnvelope) == ErrorEnvelope(body)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("it's", '"it\'s"'),
        ('say "hi"\n', r'"say \"hi\"\n"'),
        ("größer", '"größer"'),
        ("\x9b31m \u202e \ud83d", r'"\u009b31m \u202e \ud83d"'),
        ({"a": [True, None]}, '{"a": [true, null]}'),
        ("x" * 2000, '"' + "x" * 999 + "…"),
    ],
)
def test_values_in_error_texts_are_json(value, text):
    assert text == as_json(value)


@pytest.mark.parametrize("value", ["plain", "it's", 'a "b"', "\n\\'\""])
def test_a_literal_of_python_in_a_reason_becomes_json(value):
    assert f"invalid value {as_json(value)}" == explain_as_json(f"invalid value {value!r}")
    assert "expected `int`" == explain_as_json("expected `int`")
