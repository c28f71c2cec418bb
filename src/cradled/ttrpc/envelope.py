"""Pure. The two protobuf messages every ttrpc call is wrapped in, without protobuf.

``ttrpc.Request``: 1 service, 2 method, 3 payload, 4 timeout_nano, 5 metadata{1 key, 2 value}.
``ttrpc.Response``: 1 status{1 code, 2 message}, 2 payload. Unknown fields are skipped, as protobuf
does; a damaged message raises ``ValueError``. Imported by the shim: imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELD = (1 << 29) - 1


class Request:
    """What is asked; ``timeout_nano`` is relative, 0 for none."""

    __slots__ = ("metadata", "method", "payload", "service", "timeout_nano")

    def __init__(
        self,
        service: str = "",
        method: str = "",
        payload: bytes = b"",
        timeout_nano: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.service = service
        self.method = method
        self.payload = payload
        self.timeout_nano = timeout_nano
        self.metadata = metadata


class Response:
    """What came of it; ``code`` 0 is success."""

    __slots__ = ("code", "message", "payload")

    def __init__(self, payload: bytes = b"", code: int = 0, message: str = "") -> None:
        self.payload = payload
        self.code = code
        self.message = message


def encode_request(request: Request) -> bytes:
    parts = [
        _bytes_field(1, request.service.encode()),
        _bytes_field(2, request.method.encode()),
        _bytes_field(3, request.payload),
        _varint_field(4, request.timeout_nano),
    ]
    for key, value in request.metadata:
        pair = _bytes_field(1, key.encode()) + _bytes_field(2, value.encode())
        parts.append(_tag(5, _BYTES) + _varint(len(pair)) + pair)
    return b"".join(parts)


def decode_request(data: bytes) -> Request:
    """Raises ValueError for anything that is not a Request."""
    request = Request()
    metadata = []
    for number, value in _fields(data):
        if number == 1:
            request.service = _text(value)
        elif number == 2:
            request.method = _text(value)
        elif number == 3:
            request.payload = _blob(value)
        elif number == 4:
            request.timeout_nano = _int64(value)
        elif number == 5:
            metadata.append(_pair(_blob(value)))
    request.metadata = metadata
    return request


def encode_response(response: Response) -> bytes:
    if not response.code:
        return _bytes_field(2, response.payload)
    status = _varint_field(1, response.code) + _bytes_field(2, response.message.encode())
    return _bytes_field(1, status) + _bytes_field(2, response.payload)


def decode_response(data: bytes) -> Response:
    """Raises ValueError for anything that is not a Response."""
    response = Response()
    for number, value in _fields(data):
        if number == 1:
            for inner, content in _fields(_blob(value)):
                if inner == 1:
                    response.code = _int64(content)
                elif inner == 2:
                    response.message = _text(content)
        elif number == 2:
            response.payload = _blob(value)
    return response


def _pair(data: bytes) -> tuple[str, str]:
    key = text = ""
    for number, value in _fields(data):
        if number == 1:
            key = _text(value)
        elif number == 2:
            text = _text(value)
    return key, text


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    offset, end = 0, len(data)
    while offset < end:
        tag, offset = _read_varint(data, offset)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _MAX_FIELD:
            raise ValueError(f"bad field number {number}")
        value: int | bytes
        if kind == _VARINT:
            value, offset = _read_varint(data, offset)
        else:
            if kind == _BYTES:
                size, offset = _read_varint(data, offset)
            elif kind in (_FIXED32, _FIXED64):
                size = 4 if kind == _FIXED32 else 8
            else:
                raise ValueError(f"bad wire type {kind}")
            if size > end - offset:
                raise ValueError("message is cut short")
            value = data[offset : offset + size]
            offset += size
        yield number, value


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if offset >= len(data):
            raise ValueError("message is cut short")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, offset
        shift += 7
        if shift > 63:
            raise ValueError("number is too long")


def _blob(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("number where bytes belong")
    return value


def _text(value: int | bytes) -> str:
    return _blob(value).decode()


def _int64(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def _tag(number: int, kind: int) -> bytes:
    return bytes((number << 3 | kind,))


def _bytes_field(number: int, value: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(value)) + value if value else b""


def _varint_field(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _varint(value & 0xFFFFFFFFFFFFFFFF) if value else b""


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
