"""Pure. Error classes to status codes and back: the one table that gRPC and ttrpc share.

An error keeps its class and text over any number of hops: ``from_status(*to_status(error))``
is an equal error. Exceptions that no handler should let out become UNKNOWN, and their
traceback goes to the log, because the caller sees one line only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from enum import IntEnum

from cradled import errors

log = logging.getLogger(__name__)


class Code(IntEnum):
    """The status codes of gRPC; ttrpc uses the same."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_CLASSES: dict[Code, type[errors.Error]] = {
    Code.CANCELLED: errors.Cancelled,
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.ABORTED: errors.Aborted,
    Code.OUT_OF_RANGE: errors.OutOfRange,
    Code.UNIMPLEMENTED: errors.Unimplemented,
    Code.INTERNAL: errors.Internal,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DATA_LOSS: errors.DataLoss,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
}
_CODES = {cls: code for code, cls in _CLASSES.items()}

# Classes that travel under another class's code and are told apart by the end of the text.
_BY_TEXT = (errors.Conflict, errors.NotModified)

# ENOENT and EEXIST are missing on purpose: they speak of our files, not of the objects that
# the caller named, and a client that reads NOT_FOUND acts on it.
_ERRNO = {
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENOMEM: Code.RESOURCE_EXHAUSTED,
}


def code_of(exc: BaseException) -> Code:
    """The code that a peer gets for an exception."""
    if isinstance(exc, errors.Error):
        return next((_CODES[cls] for cls in type(exc).__mro__ if cls in _CODES), Code.UNKNOWN)
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        return Code.CANCELLED
    if isinstance(exc, OSError) and (exc.errno or not isinstance(exc, TimeoutError)):
        return _ERRNO.get(exc.errno or 0, Code.UNKNOWN)
    if isinstance(exc, TimeoutError):
        return Code.DEADLINE_EXCEEDED
    return Code.UNKNOWN


def to_status(exc: BaseException) -> tuple[Code, str]:
    """The code and text that a peer gets for an exception."""
    code = code_of(exc)
    if isinstance(exc, errors.Error):
        return code, str(exc)
    if code == Code.CANCELLED:
        return code, errors.Cancelled.text
    if code == Code.DEADLINE_EXCEEDED:
        return code, errors.DeadlineExceeded.text
    if code == Code.UNKNOWN:
        log.error("unexpected %s", type(exc).__name__, exc_info=exc)
    if isinstance(exc, OSError):
        return code, _os_error(exc)
    return code, str(exc) or type(exc).__name__


def from_status(code: int, text: str, details: bytes = b"") -> errors.Error:
    """The error that a peer's status stands for (never raised here, only made); see ``packed``."""
    cls: type[errors.Error] = _CLASSES.get(code, errors.Error)  # type: ignore[call-overload]
    if code == Code.FAILED_PRECONDITION:
        for other in _BY_TEXT:
            if text == other.text or text.endswith(": " + other.text):
                cls = other
    return cls(_what(text, cls.text), details=_unpacked(details) if details else ())


def packed(exc: BaseException) -> bytes:
    """The ``google.rpc.Status`` of an exception that carries details; empty for others."""
    if not isinstance(exc, errors.Error) or not exc.details:
        return b""
    from cradled.api import google_rpc_pb2, wellknown_pb2  # hardly anybody needs it

    code, text = to_status(exc)
    details = [wellknown_pb2.Any(type_url=url, value=value) for url, value in exc.details]
    status = google_rpc_pb2.Status(code=code, message=text, details=details)
    return status.SerializeToString()


def _unpacked(status: bytes) -> tuple[tuple[str, bytes], ...]:
    """The details of a ``google.rpc.Status``; none of one that cannot be read."""
    from google.protobuf.message import DecodeError

    from cradled.api import google_rpc_pb2

    try:
        message = google_rpc_pb2.Status.FromString(status)
    except DecodeError:
        return ()
    return tuple((detail.type_url, detail.value) for detail in message.details)


def _what(text: str, class_text: str) -> str:
    """The text without the class text that ``str(error)`` adds again."""
    if text == class_text:
        return ""
    return text.removesuffix(": " + class_text) if class_text else text


def _os_error(exc: OSError) -> str:
    reason = exc.strerror or str(exc)
    reason = reason[:1].lower() + reason[1:]
    where = f"{exc.filename}: " if exc.filename else ""
    return where + reason
