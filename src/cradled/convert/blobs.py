"""Pure. Messages that carry a part of a blob, read without copying it.

protobuf copies a field of bytes when it parses a message and again each time it is asked for.
Where blobs go through in messages of a MiB that is a good part of the work. So the data is cut
out of the message's bytes and shared, and protobuf parses what is left.

``SERVED`` and ``CALLED`` are the Content service with such readers, for servers and for clients:
what they receive is to be taken apart by ``data_of``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cradled.api import content_pb2 as pb
from cradled.api.pool import Service
from cradled.convert.encoded import varint

Buffer = bytes | memoryview

_LARGE = 32 << 10  # smaller messages are not worth it
_WRITE_DATA = 6
_READ_DATA = 2


class Carrier:
    """A message without its data, and the data: a read-only view that nobody changes any more."""

    __slots__ = ("data", "message")

    def __init__(self, message: Any, data: Buffer) -> None:
        self.message = message
        self.data = data


def request_parts(request: pb.WriteContentRequest, data: Buffer) -> tuple[bytes, Buffer]:
    """The bytes of a request with data added to it, in two parts: it is not copied."""
    return request.SerializeToString() + b"\x32" + varint(len(data)), data


def data_of(received: Any) -> tuple[Any, Buffer]:
    """The message and the data of what a reader made, or of an ordinary message."""
    if type(received) is Carrier:
        return received.message, received.data
    return received, received.data


def reader(message: Any, field: int) -> Callable[[Buffer | bytearray], Any]:
    """What parses messages of a class whose data is in a field with that number.

    The parser keeps a large bytearray that it is given: the caller must not change it any more.
    """

    def read(body: Buffer | bytearray) -> Any:
        if len(body) >= _LARGE:
            kept = body if type(body) is bytearray else bytes(body)
            view = memoryview(kept).toreadonly()
            found = _find(view, field)
            if found is not None:
                head, start, end = found
                rest = bytes(view[:head]) + bytes(view[end:])
                return Carrier(message.FromString(rest), view[start:end])
        return message.FromString(body)

    return read


def _find(body: memoryview, field: int) -> tuple[int, int, int] | None:
    """Where a field of bytes is: its tag, its first byte, its end.

    None where it is not, is more than once, or is in what protobuf should have a look at.
    """
    found = None
    at, size = 0, len(body)
    try:
        while at < size:
            start = at
            tag, at = _varint(body, at)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(body, at)
            elif kind == 2:
                length, at = _varint(body, at)
                if tag >> 3 == field:
                    if found is not None:
                        return None
                    found = (start, at, at + length)
                at += length
            else:
                return None
    except IndexError:
        return None
    return found if at == size else None


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends; raises IndexError when it does not."""
    value = body[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while shift < 64:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise IndexError


class WriteRequest:
    """Stands for the class of the messages that Write is sent."""

    FromString = staticmethod(reader(pb.WriteContentRequest, _WRITE_DATA))


class ReadResponse:
    """Stands for the class of the messages that Read answers with."""

    FromString = staticmethod(reader(pb.ReadContentResponse, _READ_DATA))


_METHODS = pb.Content.methods
_WRITE = _METHODS["Write"]._replace(request=WriteRequest)
_READ = _METHODS["Read"]._replace(response=ReadResponse)
SERVED = Service(pb.Content.name, {**_METHODS, "Write": _WRITE})
CALLED = Service(pb.Content.name, {**_METHODS, "Read": _READ})
