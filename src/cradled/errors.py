"""Pure. The error tree: what domain code raises, and the words clients know it by.

Each class mirrors one row of the error table that Go clients depend on. ``str(error)`` is
``<what>: <class text>``, the form those clients take apart again. Only ``cradled.rpc.status``
turns classes into wire codes.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all domain errors; an instance of just this class has no class text (UNKNOWN).

    ``verbatim``: ``what`` is the whole text; a few texts of the reference lack the class text
    (``task x not found``). ``details`` are messages for programs, as (type URL, value); gRPC
    carries them.
    """

    text = ""

    def __init__(
        self,
        what: str = "",
        *,
        verbatim: bool = False,
        details: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.verbatim = verbatim
        self.details = details

    def __str__(self) -> str:
        what, text = self.what, self.text
        if self.verbatim or not text or what == text or what.endswith(": " + text):
            return what
        return f"{what}: {text}" if what else text


class InvalidArgument(Error):
    """The request itself is wrong, whatever the state."""

    text = "invalid argument"


class NotFound(Error):
    """The named object does not exist."""

    text = "not found"


class AlreadyExists(Error):
    """An object of that name exists."""

    text = "already exists"


class PermissionDenied(Error):
    """The caller may not do this."""

    text = "permission denied"


class ResourceExhausted(Error):
    """A limit was reached."""

    text = "resource exhausted"


class FailedPrecondition(Error):
    """The object is not in a state that allows this."""

    text = "failed precondition"


class Conflict(FailedPrecondition):
    """The change collides with another; sent as FAILED_PRECONDITION."""

    text = "conflict"


class NotModified(FailedPrecondition):
    """Nothing to change; sent as FAILED_PRECONDITION."""

    text = "not modified"


class Aborted(Error):
    """The operation was broken off and may be tried again."""

    text = "aborted"


class OutOfRange(Error):
    """A position beyond the end."""

    text = "out of range"


class Unimplemented(Error):
    """Not supported here; clients fall back on another way."""

    text = "not implemented"


class Internal(Error):
    """An invariant of ours is broken."""

    text = "internal"


class Unavailable(Error):
    """Cannot be served now; clients retry."""

    text = "unavailable"


class DataLoss(Error):
    """Stored data is damaged."""

    text = "data loss"


class Unauthenticated(Error):
    """Credentials are missing or wrong."""

    text = "unauthenticated"


class Cancelled(Error):
    """The caller gave up."""

    text = "context canceled"


class DeadlineExceeded(Error):
    """The caller's time ran out."""

    text = "context deadline exceeded"


_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
    '"': '\\"', "\\": "\\\\",
}  # fmt: skip


def quote(text: str) -> str:
    """A name as texts show it: in double quotes, what is special or cannot be seen escaped."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
