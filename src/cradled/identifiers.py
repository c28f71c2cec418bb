"""Pure. Names that are checked: identifiers and labels (reference, services.md section 1)."""

from __future__ import annotations

import re

from cradled.errors import InvalidArgument, quote

MAX_LENGTH = 76
MAX_LABEL_SIZE = 4096

_PATTERN = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_MATCH = re.compile(_PATTERN, re.ASCII).fullmatch


def validate(identifier: str) -> None:
    """Raise InvalidArgument unless this may name a namespace, container, exec, task or sandbox."""
    if not identifier:
        raise InvalidArgument("identifier must not be empty")
    if len(identifier.encode()) > MAX_LENGTH:
        raise InvalidArgument(
            f"identifier {quote(identifier)} greater than maximum length ({MAX_LENGTH} characters)"
        )
    if _MATCH(identifier) is None or identifier.endswith("\n"):
        raise InvalidArgument(f"identifier {quote(identifier)} must match {_PATTERN}")


def validate_label(key: str, value: str) -> None:
    """Raise InvalidArgument without a key, or when both together are over 4096 bytes.

    An empty value is never stored, so its key does not matter.
    """
    if value and not key:
        raise InvalidArgument(f'failed to set label ""={quote(value)}: key required')
    encoded = key.encode()
    size = len(encoded) + len(value.encode())
    if size > MAX_LABEL_SIZE:
        shown = encoded[:64].decode(errors="ignore")
        raise InvalidArgument(
            f"label key and value length ({size} bytes) greater than maximum size "
            f"({MAX_LABEL_SIZE} bytes), key: {shown}"
        )
