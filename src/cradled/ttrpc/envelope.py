"""Pure. The two protobuf messages every ttrpc call is wrapped in, without protobuf.

``ttrpc.Request``: 1 service, 2 method, 3 payload, 4 timeout_nano, 5 metadata{1 key, 2 value}.
``ttrpc.Response``: 1 status{1 code, 2 message}, 2 payload. Unknown fields are skipped, as protobuf
does; a damaged message raises ``ValueError``. Imported by the shim: imports nothing but ``wire``.
"""

from __future__ import annotations

from cradled.ttrpc.wire import LENGTH, VARINT, fields, varint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


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
        parts.append(_tag(5, LENGTH) + varint(len(pair)) + pair)
    return b"".join(parts)


def decode_request(data: bytes) -> Request:
    """Raises ValueError for anything that is not a Request."""
    request = Request()
    metadata = []
    for number, _, value in fields(data):
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
    for number, _, value in fields(data):
        if number == 1:
            for inner, _, content in fields(_blob(value)):
                if inner == 1:
                    response.code = _int64(content)
                elif inner == 2:
                    response.message = _text(content)
        elif number == 2:
            response.payload = _blob(value)
    return response


def _pair(data: bytes) -> tuple[str, str]:
    key = text = ""
    for number, _, value in fields(data):
        if number == 1:
            key = _text(value)
        elif number == 2:
            text = _text(value)
    return key, text


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
    return _tag(number, LENGTH) + varint(len(value)) + value if value else b""


def _varint_field(number: int, value: int) -> bytes:
    return _tag(number, VARINT) + varint(value & 0xFFFFFFFFFFFFFFFF) if value else b""
