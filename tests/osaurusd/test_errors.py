"""Errors and their codes belong together one to one, on both sides of every wire."""

import pytest

from osaurusd import errors
from osaurusd.errors import OsaurusError
from osaurusd.wire.errors import ErrorCode


def below(cls):
    for child in cls.__subclasses__():
        yield child
        yield from below(child)


CLASSES = [cls for cls in below(OsaurusError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_one_class(code):
    owners = [cls for cls in CLASSES if cls.code is code]
    assert len(owners) == 1
    assert OsaurusError.by_code[code] is owners[0]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_says_its_own_code(cls):
    assert "code" in vars(cls)


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_survives_travelling_as_a_code(code):
    sent = OsaurusError.by_code[code]("it went wrong", param="messages[0]")
    received = errors.from_code(ErrorCode(str(sent.code)), sent.message, sent.param)
    assert type(received) is type(sent)
    assert (received.message, received.param, str(received)) == ("it went wrong", "messages[0]", "it went wrong")


def test_an_error_need_not_name_a_field():
    assert errors.from_code(ErrorCode.BUSY, "busy").param is None


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (errors.InvalidJson, errors.InvalidRequest),
        (errors.UnsupportedParameter, errors.InvalidRequest),
        (errors.ImageInputUnsupported, errors.InvalidRequest),
        (errors.ContextLengthExceeded, errors.InvalidRequest),
        (errors.RequestExceedsMemory, errors.InvalidRequest),
        (errors.ModelNotDownloaded, errors.ModelNotFound),
    ],
)
def test_special_errors_are_caught_as_the_general_one(special, general):
    assert issubclass(special, general)


def test_other_errors_are_nobody_elses_kind():
    nested = {cls for cls in CLASSES if cls.__mro__[1] is not OsaurusError}
    assert len(nested) == 6
