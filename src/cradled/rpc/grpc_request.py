"""Pure. The head of a gRPC request as a server reads it, and what it says to one that is none.

The checks and texts are those of Go's server: what HTTP/2 forbids has the stream reset, what is
no gRPC gets an HTTP status beside the status of gRPC.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache

from cradled.http2 import hpack
from cradled.http2.hpack import Field
from cradled.rpc.call import split_metadata
from cradled.rpc.grpc_wire import CONTENT_TYPE, ENCODINGS, as_text, status_fields
from cradled.rpc.status import Code

_REMEMBERED = 4 << 10  # bytes of a head; longer ones are read anew each time
_UNIQUE = frozenset({b"grpc-timeout", b"traceparent"})  # fields that no two calls share
_RESERVED = frozenset(
    {
        "grpc-accept-encoding",
        "grpc-encoding",
        "grpc-message",
        "grpc-message-type",
        "grpc-status",
        "grpc-status-details-bin",
        "te",
    }
)
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority", b":protocol"))
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search  # in a value
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/=]").search
_GRPC = re.compile(r"application/grpc(?:[+;](.*))?", re.DOTALL).fullmatch
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class RequestHead:
    """The head of a request.

    ``refusal`` is the header block that answers one which is not ``served``; it is empty for those
    that HTTP/2 has reset. ``content_type`` is that of the response, empty for the usual one.
    """

    __slots__ = (
        "binary",
        "content_type",
        "encoding",
        "metadata",
        "path",
        "refusal",
        "served",
        "timeout",
    )

    def __init__(self, path: str = "", encoding: str = "identity", content_type: str = "") -> None:
        self.path = path
        self.encoding = encoding
        self.content_type = content_type
        self.metadata: dict[str, str] = {}
        self.binary: dict[str, bytes] = {}
        self.timeout: float | None = None
        self.refusal = b""
        self.served = True


def request_head(fields: list[Field]) -> RequestHead:
    """The head that fields make.

    Of a client's calls often only the timeout differs, and the caller's span, so the rest is
    remembered.
    """
    for name, _ in fields:
        if name in _UNIQUE:
            rest = _head(tuple(field for field in fields if field[0] not in _UNIQUE))
            return _with_own(rest, [field for field in fields if field[0] in _UNIQUE])
    return _head(tuple(fields))


def decode_timeout(value: str) -> float:
    """The seconds that a grpc-timeout says; raises ValueError with the reason."""
    if len(value) < 2:
        raise ValueError(f"transport: timeout string is too short: {quoted(value)}")
    if len(value) > 9:
        raise ValueError(f"transport: timeout string is too long: {quoted(value)}")
    count, unit = value[:-1], value[-1]
    if unit not in _UNITS:
        raise ValueError(f"transport: timeout unit is not recognized: {quoted(value)}")
    if not (count.isascii() and count.isdigit()):
        raise ValueError(f"strconv.ParseUint: parsing {quoted(count)}: invalid syntax")
    return int(count) * _UNITS[unit]


def quoted(text: str) -> str:
    """A text in quotes, as Go writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'


def _escape(char: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    return short or (f"\\x{ord(char):02x}" if char < "\x80" else f"\\u{ord(char):04x}")


def _with_own(rest: RequestHead, own: list[Field]) -> RequestHead:
    """A head with what is its own; of a repeated field the first counts."""
    head = RequestHead(rest.path, rest.encoding, rest.content_type)
    head.metadata, head.binary = rest.metadata, rest.binary
    head.refusal, head.served = rest.refusal, rest.served
    if any(_FORBIDDEN(value) for _, value in own):
        head.refusal, head.served = b"", False
    values = {name: value.decode("latin-1") for name, value in reversed(own)}
    timeout = values.pop(b"grpc-timeout", None)
    if values:
        more = {name.decode(): value for name, value in values.items()}
        head.metadata = {**head.metadata, **more}
    return head if timeout is None else _with_timeout(head, timeout)


def _with_timeout(head: RequestHead, value: str) -> RequestHead:
    try:
        head.timeout = decode_timeout(value)
    except ValueError as error:
        if head.served:
            text = f"malformed grpc-timeout: {error}"
            head.refusal = _refusal(400, Code.INTERNAL, text, head.content_type)
            head.served = False
    return head


def _head(fields: tuple[Field, ...]) -> RequestHead:
    size = sum([len(name) + len(value) for name, value in fields])
    return _remembered_head(fields) if size <= _REMEMBERED else _new_head(fields)


def _new_head(fields: tuple[Field, ...]) -> RequestHead:
    pairs = as_text(fields)
    by_name = dict(pairs)
    content_type = by_name.get("content-type", "")
    subtype = _GRPC(content_type.lower())
    head = RequestHead(by_name.get(":path", ""), by_name.get("grpc-encoding") or "identity")
    if subtype is not None and subtype[1]:
        head.content_type = f"application/grpc+{subtype[1]}"
    head.metadata, head.binary = split_metadata(
        pair for pair in pairs if pair[0] not in _RESERVED and pair[0][:1] != ":"
    )
    problem = _problem(pairs, by_name, subtype is not None)
    head.served = False
    if _is_malformed(fields):
        pass
    elif problem is not None:
        head.refusal = _refusal(*problem, head.content_type)
    elif head.encoding not in ENCODINGS:
        head.refusal = _unknown_encoding(head)
    else:
        head.served = True
    return head


_remembered_head = lru_cache(1024)(_new_head)


def _is_malformed(fields: tuple[Field, ...]) -> bool:
    """What HTTP/2 itself forbids (RFC 9113 section 8)."""
    seen: set[bytes] = set()
    regular = False
    for name, value in fields:
        if not _NAME(name) or _FORBIDDEN(value) or name == b"connection":
            return True
        if name[:1] == b":":
            if regular or name in seen or name not in _PSEUDO:
                return True
            seen.add(name)
        else:
            regular = True
    return False


def _problem(
    pairs: list[tuple[str, str]], by_name: dict[str, str], is_grpc: bool
) -> tuple[int, Code, str] | None:
    """HTTP status, code and text for a request that is not good gRPC."""
    hosts = sum(name == "host" for name, _ in pairs)
    if hosts > 1:
        authorities = int(":authority" in by_name)
        return (
            400,
            Code.INTERNAL,
            f"num values of :authority: {authorities}, num values of host: {hosts}, "
            "both must only have 1 value as per HTTP/2 spec",
        )
    if not is_grpc:
        content_type = quoted(by_name.get("content-type", ""))
        return 415, Code.INVALID_ARGUMENT, f"invalid gRPC request content-type {content_type}"
    for name, value in pairs:
        if name.endswith("-bin") and name not in _RESERVED and (reason := _no_base64(value)):
            text = f"malformed binary metadata {quoted(value)} in header {quoted(name)}: {reason}"
            return 400, Code.INTERNAL, text
    method = by_name.get(":method", "")
    if method != "POST":
        text = f"Received a HEADERS frame with :method {quoted(method)} which should be POST"
        return 405, Code.INTERNAL, text
    return None


def _no_base64(value: str) -> str:
    """Why a value (or several, joined by commas) cannot be decoded; empty if it can."""
    at = 0
    for part in value.split(","):
        strange = _NO_BASE64(part)
        if strange:
            return f"illegal base64 data at input byte {at + strange.start()}"
        try:
            base64.b64decode(part + "=" * (-len(part) % 4), validate=True)
        except ValueError:
            return f"illegal base64 data at input byte {at + len(part)}"
        at += len(part) + 1
    return ""


def _refusal(http_status: int, code: Code, text: str, content_type: str) -> bytes:
    return hpack.encode(
        [
            (b":status", b"%d" % http_status),
            (b"content-type", content_type.encode() or CONTENT_TYPE),
            *status_fields(code, text),
        ]
    )


def _unknown_encoding(head: RequestHead) -> bytes:
    name = quoted(head.encoding)
    text = f"grpc: Decompressor is not installed for grpc-encoding {name}"
    block = _refusal(200, Code.UNIMPLEMENTED, text, head.content_type)
    return block + hpack.encode([(b"grpc-accept-encoding", ",".join(ENCODINGS).encode())])
