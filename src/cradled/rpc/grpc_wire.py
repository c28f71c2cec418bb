"""Pure. What gRPC adds to HTTP/2: heads, trailers, timeouts, and messages in data."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from cradled import errors
from cradled.http2 import hpack
from cradled.http2.hpack import Field
from cradled.rpc.call import split_metadata
from cradled.rpc.status import Code

MAX_MESSAGE = 16 << 20  # bytes, either way
PREFIX = struct.Struct(">BI")  # compressed or not, size
_SET_ASIDE = 2 << 20  # bytes, for a message whose prefix has come; content comes in 1 MiB

_CONTENT_TYPE = (b"content-type", b"application/grpc")
_RESPONSE_HEAD = [(b":status", b"200"), _CONTENT_TYPE]
RESPONSE = hpack.encode(_RESPONSE_HEAD)
TRAILERS_OK = hpack.encode([(b"grpc-status", b"0")])
_RESERVED = frozenset({"te", "grpc-encoding", "grpc-accept-encoding"})
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII).fullmatch
_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


class RequestHead:
    """The head of a request. ``refusal`` is the HTTP status for one that is no gRPC, else 0."""

    __slots__ = ("binary", "encoding", "metadata", "path", "refusal", "timeout")

    def __init__(
        self,
        path: str,
        encoding: str,
        metadata: dict[str, str],
        binary: dict[str, bytes],
        timeout: float | None,
        refusal: int,
    ) -> None:
        self.path = path
        self.encoding = encoding
        self.metadata = metadata
        self.binary = binary
        self.timeout = timeout
        self.refusal = refusal


def request_head(fields: list[Field]) -> RequestHead:
    """The head that fields make.

    Of a client's calls often only the timeout differs, so the rest is remembered.
    """
    for at, (name, value) in enumerate(fields):
        if name == b"grpc-timeout":
            head = _head_without_timeout((*fields[:at], *fields[at + 1 :]))
            timeout = decode_timeout(value.decode("latin-1"))
            refusal = head.refusal or (400 if timeout is None else 0)
            return RequestHead(
                head.path, head.encoding, head.metadata, head.binary, timeout, refusal
            )
    return _head_without_timeout(tuple(fields))


@lru_cache(1024)
def _head_without_timeout(fields: tuple[Field, ...]) -> RequestHead:
    pairs = _text(fields)
    by_name = dict(pairs)
    refusal = 0
    if by_name.get(":method") != "POST":
        refusal = 405
    elif not by_name.get("content-type", "").startswith("application/grpc"):
        refusal = 415
    metadata, binary = split_metadata(
        pair for pair in pairs if pair[0] not in _RESERVED and pair[0][:1] != ":"
    )
    encoding = by_name.get("grpc-encoding", "identity")
    return RequestHead(by_name.get(":path", ""), encoding, metadata, binary, None, refusal)


class ResponseHead:
    """The head or the trailers of a response; ``code`` is None where no status was given."""

    __slots__ = ("binary", "code", "encoding", "http_status", "metadata", "text")

    def __init__(self, fields: list[Field]) -> None:
        pairs = _text(fields)
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
            pair for pair in pairs if pair[0][:1] != ":" and not pair[0].startswith("grpc-")
        )


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


def request_block(
    path: str, authority: str, metadata: Iterable[tuple[str, str]], timeout: float | None
) -> bytes:
    """The header block of a request; ``timeout`` in seconds."""
    block = hpack.encode(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", authority.encode()),
            _CONTENT_TYPE,
            (b"te", b"trailers"),
            (b"grpc-accept-encoding", b"identity,gzip"),
            *_metadata_fields(metadata),
        ]
    )
    if timeout is not None:
        block += hpack.encode([(b"grpc-timeout", encode_timeout(timeout))])
    return block


def response_block(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """The header block of a response with metadata (RESPONSE is the one without)."""
    return hpack.encode([*_RESPONSE_HEAD, *_metadata_fields(metadata)])


def trailers_block(
    code: int, text: str, metadata: Iterable[tuple[str, str | bytes]], headers_sent: bool
) -> bytes:
    """The block that ends a response; when no headers were sent it is the whole response."""
    fields = [] if headers_sent else list(_RESPONSE_HEAD)
    fields.append((b"grpc-status", b"%d" % code))
    if text:
        fields.append((b"grpc-message", _percent_encoded(text)))
    fields.extend(_metadata_fields(metadata))
    return hpack.encode(fields)


def refusal_block(http_status: int) -> bytes:
    """The response to a request that is no gRPC."""
    return hpack.encode([(b":status", b"%d" % http_status)])


def encode_timeout(seconds: float) -> bytes:
    """The value of grpc-timeout, in the finest unit that has room for it."""
    nanoseconds = max(0, round(seconds * 1e9))
    for unit, size in (("n", 1), ("u", 10**3), ("m", 10**6), ("S", 10**9), ("M", 60 * 10**9)):
        count = -(-nanoseconds // size)
        if count < 10**8:
            return b"%d%s" % (count, unit.encode())
    return b"%dH" % min(nanoseconds // (3600 * 10**9), 10**8 - 1)


def decode_timeout(value: str) -> float | None:
    """The seconds that a grpc-timeout says; None if it is malformed."""
    match = _TIMEOUT(value)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _text(fields: Iterable[Field]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in fields]


def _metadata_fields(metadata: Iterable[tuple[str, str | bytes]]) -> list[Field]:
    fields = []
    for key, value in metadata:
        if isinstance(value, bytes):
            value = base64.b64encode(value).rstrip(b"=").decode()
        fields.append((key.lower().encode(), value.encode()))
    return fields


def _percent_encoded(text: str) -> bytes:
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text.encode())


class MessageReader:
    """Puts the messages of one direction of a call together, from data in pieces of any size.

    ``parse`` may keep a bytearray that it is given, nothing else.
    """

    __slots__ = ("_body", "_compressed", "_encoding", "_filled", "_head", "_left", "_parse")

    def __init__(self, parse: Callable[[Any], Any], encoding: str) -> None:
        self._parse = parse
        self._encoding = encoding
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
                self._body, self._filled = bytearray(min(self._left, _SET_ASIDE)), 0
            piece = data[: self._left]
            self._fill(self._body, piece)
            data = data[len(piece) :]
            if not self._left:
                body, self._body = self._body, None
                messages.append(self._message(body))
        return messages

    def _fill(self, body: bytearray, piece: memoryview) -> None:
        end = self._filled + len(piece)
        if piece.obj is not body:
            if len(body) < end:  # larger than what was set aside: grown as it comes
                size = max(end, min(2 * len(body), self._filled + self._left))
                self._body = grown = bytearray(size)
                grown[: self._filled] = memoryview(body)[: self._filled]
                body = grown
            memoryview(body)[self._filled : end] = piece
        self._filled = end
        self._left -= len(piece)

    def _begin(self, compressed: int, size: int) -> None:
        if size > MAX_MESSAGE:
            raise errors.ResourceExhausted(
                f"grpc: received message larger than max ({size} vs. {MAX_MESSAGE})"
            )
        if compressed and self._encoding != "gzip":
            if self._encoding == "identity":
                raise errors.Internal("grpc: compressed flag set with identity or empty encoding")
            raise errors.Unimplemented(
                f'grpc: Decompressor is not installed for grpc-encoding "{self._encoding}"'
            )
        self._compressed = bool(compressed)
        self._left = size

    def _message(self, body: memoryview | bytearray) -> Any:
        return parsed(self._parse, _gunzip(body) if self._compressed else body)


def parsed(parse: Callable[[Any], Any], body: memoryview | bytearray | bytes) -> Any:
    """A message; raises Internal for what is none."""
    try:
        return parse(body)
    except Exception as error:  # protobuf's implementations raise different classes
        raise errors.Internal(f"grpc: error unmarshalling message: {error}") from error


def _gunzip(body: memoryview | bytearray) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        data = decompressor.decompress(body, MAX_MESSAGE + 1)
    except zlib.error as error:
        raise errors.Internal(f"grpc: failed to decompress the message: {error}") from error
    if len(data) > MAX_MESSAGE:
        raise errors.ResourceExhausted(
            f"grpc: received message after decompression larger than max {MAX_MESSAGE}"
        )
    return data
