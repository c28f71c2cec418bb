"""The table of errors and codes."""

import asyncio
import errno

import pytest

from cradled import errors
from cradled.rpc.status import Code, from_status, to_status

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("what", ["", 'image "x"', "a: b", "x: not found: y"])
def test_an_error_keeps_class_and_text_over_hops(cls, what):
    error = cls(what)
    for _ in range(3):
        again = from_status(*to_status(error))
        assert type(again) is cls
        assert str(again) == str(error)
        assert again.what == error.what
        error = again


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Conflict("x"), Code.FAILED_PRECONDITION),
        (errors.NotModified("x"), Code.FAILED_PRECONDITION),
        (errors.Cancelled(), Code.CANCELLED),
        (errors.Error("x"), Code.UNKNOWN),
        (asyncio.CancelledError(), Code.CANCELLED),
        (TimeoutError(), Code.DEADLINE_EXCEEDED),
    ],
)
def test_codes(error, code):
    assert to_status(error)[0] == code


def test_texts_of_clients_contexts():
    assert to_status(asyncio.CancelledError())[1] == "context canceled"
    assert to_status(TimeoutError())[1] == "context deadline exceeded"
    assert str(from_status(4, "context deadline exceeded")) == "context deadline exceeded"


def test_a_text_of_another_class_is_free_text():
    error = from_status(Code.NOT_FOUND, "x: conflict")
    assert type(error) is errors.NotFound
    assert str(error) == "x: conflict: not found"


@pytest.mark.parametrize("code", [2, 17, 99, -1])
def test_unknown_codes(code):
    error = from_status(code, "what")
    assert type(error) is errors.Error
    assert str(error) == "what"


def test_a_subclass_travels_as_its_class():
    class Missing(errors.NotFound):
        pass

    assert to_status(Missing("x")) == (Code.NOT_FOUND, "x: not found")


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        (OSError(errno.ENOSPC, "No space left", "/x"), (8, "/x: no space left")),
        (PermissionError(errno.EACCES, "Permission denied"), (7, "permission denied")),
        (FileNotFoundError(errno.ENOENT, "No such file", "/y"), (2, "/y: no such file")),
        (TimeoutError(errno.ETIMEDOUT, "Timed out"), (2, "timed out")),
    ],
)
def test_errors_of_the_system(exc, status):
    assert to_status(exc) == status


def test_what_nobody_expected_is_logged(caplog):
    with pytest.raises(ZeroDivisionError) as caught:
        raise ZeroDivisionError
    assert to_status(caught.value) == (Code.UNKNOWN, "ZeroDivisionError")
    assert to_status(ValueError("bad")) == (Code.UNKNOWN, "bad")
    assert "Traceback" in caplog.text
    caplog.clear()
    to_status(errors.NotFound("x"))
    assert not caplog.records
