"""Pure. What gRPC adds to HTTP/2: heads, trailers, timeouts, and messages in data."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from cradled import errors
from cradled.http2 import hpack
from cradled.http2.hpack import Field
from cradled.rpc.call import split_metadata
from cradled.rpc.status import Code

MAX_MESSAGE = 16 << 20  # bytes, either way, unless a server is configured otherwise
PREFIX = struct.Struct(">BI")  # compressed or not, size
_SET_ASIDE = 2 << 20  # bytes, for a message whose prefix has come; content comes in 1 MiB
_SET_ASIDE_LEAST = 16 << 10  # ... where very many messages are under way
_GENEROUS = 64 << 20  # bytes under way, up to which a prefix is believed
_UNDER_WAY = 512 << 20
_OTHERS = 512  # bytes of header fields that go with a status, and what each counts beside its text
_TOO_MANY = "grpc: too many messages at once on this connection"

ENCODINGS = {"identity": 0, "gzip": 31, "deflate": 15}  # and what zlib calls their formats
CONTENT_TYPE = b"application/grpc"
_DETAILS = "grpc-status-details-bin"
RESPONSE = hpack.encode([(b":status", b"200"), (b"content-type", CONTENT_TYPE)])
TRAILERS_OK = hpack.encode([(b"grpc-status", b"0")])
_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


class ResponseHead:
    """The head or the trailers of a response; ``code`` is None where no status was given."""

    __slots__ = ("binary", "code", "details", "encoding", "http_status", "metadata", "text")

    def __init__(self, fields: list[Field]) -> None:
        pairs = as_text(fields)
        by_name = dict(pairs)
        self.http_status = by_name.get(":status", "")
        self.encoding = by_name.get("grpc-encoding", "identity")
        self.text = by_name.get("grpc-message", "")
        if "%" in self.text:
            from urllib.parse import unquote  # only clients that are told of odd errors need it

            self.text = unquote(self.text, errors="replace")
        self.code: int | None = None
        if "grpc-status" in by_name:
            code = by_name["grpc-status"]
            self.code = int(code) if code.isdecimal() and len(code) < 4 else Code.UNKNOWN
        elif self.http_status not in ("", "200"):
            self.code = _FROM_HTTP.get(self.http_status, Code.UNKNOWN)
            self.text = f"unexpected HTTP status {self.http_status}"
        self.metadata, self.binary = split_metadata(
            pair
            for pair in pairs
            if pair[0][:1] != ":" and (not pair[0].startswith("grpc-") or pair[0] == _DETAILS)
        )
        self.details = self.binary.pop(_DETAILS, b"")


_FROM_HTTP = {
    "400": Code.INTERNAL,
    "401": Code.UNAUTHENTICATED,
    "403": Code.PERMISSION_DENIED,
    "404": Code.UNIMPLEMENTED,
    "429": Code.UNAVAILABLE,
    "502": Code.UNAVAILABLE,
    "503": Code.UNAVAILABLE,
    "504": Code.UNAVAILABLE,
}


def request_fields(path: str, authority: str, metadata: Iterable[tuple[str, str]]) -> list[Field]:
    """The head of a request but for its timeout."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"content-type", CONTENT_TYPE),
        (b"te", b"trailers"),
        (b"grpc-accept-encoding", ",".join(ENCODINGS).encode()),
        *_metadata_fields(metadata),
    ]


def unique_block(metadata: Iterable[tuple[str, str]], timeout: float | None) -> bytes:
    """The part of a request's header block that is like no other; ``timeout`` in seconds."""
    fields = _metadata_fields(metadata)
    if timeout is not None:
        fields.append((b"grpc-timeout", encode_timeout(timeout)))
    return hpack.encode(fields)


def request_block(
    path: str, authority: str, metadata: Iterable[tuple[str, str]], timeout: float | None
) -> bytes:
    """The header block of a request, right on any connection; ``timeout`` in seconds."""
    return hpack.encode(request_fields(path, authority, metadata)) + unique_block((), timeout)


def response_block(
    metadata: Iterable[tuple[str, str | bytes]] = (), content_type: str = ""
) -> bytes:
    """The header block of a response (RESPONSE is the usual one)."""
    if not (metadata or content_type):
        return RESPONSE
    content = (b"content-type", content_type.encode() or CONTENT_TYPE)
    return hpack.encode([(b":status", b"200"), content, *_metadata_fields(metadata)])


def trailers_block(
    code: int,
    text: str,
    metadata: Iterable[tuple[str, str | bytes]],
    headers_sent: bool,
    details: bytes = b"",
) -> bytes:
    """The block that ends a response; when no headers were sent it is the whole response.

    ``details`` are a ``google.rpc.Status``.
    """
    fields = [*status_fields(code, text), *_metadata_fields(metadata)]
    if details:
        fields += _metadata_fields([(_DETAILS, details)])
    return (b"" if headers_sent else RESPONSE) + hpack.encode(fields)


def fitted(text: str, details: bytes, room: int) -> tuple[str, bytes]:
    """What of a status goes into so many bytes of header fields, its code apart.

    Clients that take less than others would lose the whole status over a long text.
    """
    room = max(0, room - _OTHERS)
    if len(text) * 12 + len(details) * 2 <= room:  # hardly ever is it worth a closer look
        return text, details
    coded = _UNSAFE.sub(_percent_encoded, text.encode())
    if len(details) * 4 // 3 + len(coded) > room:
        details = b""
    if len(coded) > room:
        text = text.encode()[: room // 3].decode(errors="ignore")
    return text, details


def status_fields(code: int, text: str) -> list[Field]:
    """A status as it travels."""
    fields = [(b"grpc-status", b"%d" % code)]
    if text:
        fields.append((b"grpc-message", _UNSAFE.sub(_percent_encoded, text.encode())))
    return fields


def encode_timeout(seconds: float) -> bytes:
    """The value of grpc-timeout, in the finest unit that has room for it."""
    nanoseconds = max(0, round(seconds * 1e9))
    for unit, size in (("n", 1), ("u", 10**3), ("m", 10**6), ("S", 10**9), ("M", 60 * 10**9)):
        count = -(-nanoseconds // size)
        if count < 10**8:
            return b"%d%s" % (count, unit.encode())
    return b"%dH" % min(nanoseconds // (3600 * 10**9), 10**8 - 1)


def as_text(fields: Iterable[Field]) -> list[tuple[str, str]]:
    """Fields as texts."""
    return [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in fields]


def _metadata_fields(metadata: Iterable[tuple[str, str | bytes]]) -> list[Field]:
    fields = []
    for key, value in metadata:
        if isinstance(value, bytes):
            value = base64.b64encode(value).rstrip(b"=").decode()
        fields.append((key.lower().encode(), value.encode()))
    return fields


def _percent_encoded(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


class Account:
    """How many bytes the unfinished messages of one connection take, all calls together; no
    message may be larger than ``limit``."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self.used = 0

    def add(self, size: int) -> None:
        """Raises ResourceExhausted when that is too much."""
        if self.used + size > _UNDER_WAY:
            raise errors.ResourceExhausted(_TOO_MANY, verbatim=True)
        self.used += size


class MessageReader:
    """Puts the messages of one direction of a call together, from data in pieces of any size.

    ``parse`` may keep a bytearray that it is given, nothing else.
    """

    __slots__ = (
        "_account",
        "_body",
        "_compressed",
        "_encoding",
        "_filled",
        "_head",
        "_left",
        "_parse",
    )

    def __init__(
        self, parse: Callable[[Any], Any], encoding: str, account: Account | None = None
    ) -> None:
        self._parse = parse
        self._encoding = encoding
        self._account = account or Account()
        self._head = b""  # a part of a prefix
        self._body: bytearray | None = None  # of a message that has begun
        self._filled = 0
        self._compressed = False
        self._left = 0  # bytes missing of that message

    @property
    def partial(self) -> bool:
        """A message has begun and not ended."""
        return bool(self._head) or self._body is not None

    def room(self, limit: int) -> memoryview | None:
        """Where up to ``limit`` bytes that come next belong, if they are of a message under way.

        What is received there is fed as a part of this view: it is in its place already.
        """
        body = self._body
        if body is None or self._filled == len(body):  # it has to grow first
            return None
        return memoryview(body)[self._filled : self._filled + min(limit, self._left)]

    def feed(self, data: memoryview) -> list[Any]:
        """The messages that are complete now, parsed.

        Raises ResourceExhausted for one over the limit, Internal and Unimplemented for one that
        cannot be read.
        """
        messages = []
        while data:
            if self._body is None:
                head = self._head + bytes(data[: PREFIX.size - len(self._head)])
                data = data[PREFIX.size - len(self._head) :]
                if len(head) < PREFIX.size:
                    self._head = head
                    break
                self._head = b""
                self._begin(*PREFIX.unpack(head))
                if len(data) >= self._left:  # it is all here: no need to collect it
                    messages.append(self._message(data[: self._left]))
                    data = data[self._left :]
                    continue
                self._set_aside()
                assert self._body is not None
            piece = data[: self._left]
            self._fill(self._body, piece)
            data = data[len(piece) :]
            if not self._left:
                body = self._body
                self.close()
                messages.append(self._message(body))
        return messages

    def _fill(self, body: bytearray, piece: memoryview) -> None:
        end = self._filled + len(piece)
        if piece.obj is not body:
            if len(body) < end:  # larger than what was set aside: grown as it comes
                size = max(end, min(2 * len(body), self._filled + self._left))
                self._account.add(size - len(body))
                self._body = grown = bytearray(size)
                grown[: self._filled] = memoryview(body)[: self._filled]
                body = grown
            memoryview(body)[self._filled : end] = piece
        self._filled = end
        self._left -= len(piece)

    def close(self) -> None:
        """Let go of the message under way."""
        if self._body is not None:
            self._account.used -= len(self._body)
            self._body = None

    def _set_aside(self) -> None:
        generous = self._account.used < _GENEROUS
        size = min(self._left, _SET_ASIDE if generous else _SET_ASIDE_LEAST)
        self._account.add(size)
        self._body, self._filled = bytearray(size), 0

    def _begin(self, compressed: int, size: int) -> None:
        limit = self._account.limit
        if size > limit:
            text = f"grpc: received message larger than max ({size} vs. {limit})"
            raise errors.ResourceExhausted(text, verbatim=True)
        if compressed and not ENCODINGS.get(self._encoding):
            if self._encoding == "identity":
                text = "grpc: compressed flag set with identity or empty encoding"
                raise errors.Internal(text, verbatim=True)
            text = f'grpc: Decompressor is not installed for grpc-encoding "{self._encoding}"'
            raise errors.Unimplemented(text, verbatim=True)
        self._compressed = bool(compressed)
        self._left = size

    def _message(self, body: memoryview | bytearray) -> Any:
        if self._compressed:
            wbits = ENCODINGS[self._encoding]
            return parsed(self._parse, _decompressed(body, wbits, self._account.limit))
        return parsed(self._parse, body)


def parsed(parse: Callable[[Any], Any], body: memoryview | bytearray | bytes) -> Any:
    """A message; raises Internal for what is none."""
    try:
        return parse(body)
    except Exception as error:  # protobuf's implementations raise different classes
        text = f"grpc: failed to unmarshal the received message: {error}"
        raise errors.Internal(text, verbatim=True) from error


def _decompressed(body: memoryview | bytearray, wbits: int, limit: int) -> bytes:
    decompressor = zlib.decompressobj(wbits)
    failed = "grpc: failed to decompress the received message"
    try:
        data = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise errors.Internal(f"{failed}: {error}", verbatim=True) from error
    if len(data) > limit:
        text = f"grpc: received message after decompression larger than max {limit}"
        raise errors.ResourceExhausted(text, verbatim=True)
    if not decompressor.eof:
        raise errors.Internal(f"{failed}: unexpected EOF", verbatim=True)
    return data
