"""Each error class has one code, and survives crossing a process boundary as that code."""

import pytest

from osaurusd import errors
from osaurusd.errors import OsaurusError
from osaurusd.wire.errors import ErrorCode


def subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


CLASSES = [cls for cls in subclasses(OsaurusError) if cls.__module__ == errors.__name__]


def test_every_code_has_exactly_one_class():
    assert sorted(ErrorCode) == sorted(cls.code for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_defines_its_own_code(cls):
    assert "code" in vars(cls)


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_is_rebuilt_from_its_code(code):
    sent = OsaurusError.by_code[code]("reason", location=("prompt", "messages", 0))
    received = errors.from_code(ErrorCode(str(sent.code)), sent.message, sent.location)
    assert type(received) is type(sent)
    assert ("reason", ("prompt", "messages", 0), None) == (received.message, received.location, received.param)
    assert str(received) == "reason"


@pytest.mark.parametrize(
    ("specific", "general"),
    [
        (errors.InvalidJson, errors.InvalidRequest),
        (errors.UnsupportedParameter, errors.InvalidRequest),
        (errors.ImageInputUnsupported, errors.InvalidRequest),
        (errors.ContextLengthExceeded, errors.InvalidRequest),
        (errors.RequestExceedsMemory, errors.InvalidRequest),
        (errors.ModelNotDownloaded, errors.ModelNotFound),
    ],
)
def test_specific_errors_can_be_caught_as_the_general_one(specific, general):
    assert issubclass(specific, general)
