"""Heads of requests: what is served, and what others are told, in the words of Go's server."""

import pytest

from cradled.http2.hpack import Decoder
from cradled.rpc import grpc_request
from cradled.rpc.grpc_request import request_head
from cradled.rpc.grpc_wire import ResponseHead

BASE = {":method": "POST", ":path": "/a.B/C", "content-type": "application/grpc"}


def request(**more):
    pairs = {**BASE, **{key.replace("_", "-"): value for key, value in more.items()}}
    return request_head([(k.encode(), v.encode()) for k, v in pairs.items() if v is not None])


def with_fields(*fields):
    return request_head([(k.encode(), v.encode()) for k, v in [*BASE.items(), *fields]])


def is_malformed(head):
    return not head.served and not head.refusal


def answer(head):
    """HTTP status, code, text, content type."""
    fields = Decoder(list, 1 << 24).decode(head.refusal)
    status = ResponseHead(fields)
    return int(status.http_status), status.code, status.text, dict(fields)[b"content-type"].decode()


def test_what_is_served():
    head = request(te="trailers", grpc_encoding="gzip", user_agent="x", a="b", grpc_status="7")
    assert head.metadata == {"content-type": "application/grpc", "user-agent": "x", "a": "b"}
    assert (head.path, head.encoding, head.timeout) == ("/a.B/C", "gzip", None)
    assert head.served
    assert is_malformed(with_fields((":authority", "x")))  # behind the others
    for authority in ("localhost", "", "%2Frun%2Fcontainerd.sock", "a:80", "[::1]"):
        fields = [(":authority", authority), *BASE.items(), ("host", "other")]
        head = request_head([(k.encode(), v.encode()) for k, v in fields])
        assert head.served


@pytest.mark.parametrize(
    ("content_type", "echoed"),
    [
        ("application/grpc", ""),
        ("application/grpc+proto", "application/grpc+proto"),
        ("application/grpc;proto", "application/grpc+proto"),
        ("Application/GRPC+Proto", "application/grpc+proto"),
        ("application/grpc+", ""),
        ("application/grpc+json", "application/grpc+json"),
    ],
)
def test_content_types(content_type, echoed):
    head = request(content_type=content_type)
    assert head.served
    assert head.content_type == echoed


@pytest.mark.parametrize("content_type", ["text/html", "", "application/grpcx", "application/grp"])
def test_other_content_types(content_type):
    assert answer(request(content_type=content_type)) == (
        415,
        3,
        f'invalid gRPC request content-type "{content_type}"',
        "application/grpc",
    )


def test_no_content_type_and_no_method():
    assert answer(request(content_type=None))[:2] == (415, 3)
    assert answer(request_head([(b"content-type", b"application/grpc+proto")])) == (
        405,
        13,
        'Received a HEADERS frame with :method "" which should be POST',
        "application/grpc+proto",
    )


def test_other_methods():
    head = request_head([(b":method", b"GET"), (b"content-type", b"application/grpc")])
    text = 'Received a HEADERS frame with :method "GET" which should be POST'
    assert answer(head) == (405, 13, text, "application/grpc")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", 'transport: timeout string is too short: ""'),
        ("S", 'transport: timeout string is too short: "S"'),
        ("123456789S", 'transport: timeout string is too long: "123456789S"'),
        ("1s", 'transport: timeout unit is not recognized: "1s"'),
        ("-1S", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("1.5S", 'strconv.ParseUint: parsing "1.5": invalid syntax'),
        ("1S ", 'transport: timeout unit is not recognized: "1S "'),
        ("\u00b2S", 'strconv.ParseUint: parsing "\u00c2\u00b2": invalid syntax'),
    ],
)
def test_bad_timeouts(value, reason):
    assert answer(request(grpc_timeout=value)) == (
        400,
        13,
        f"malformed grpc-timeout: {reason}",
        "application/grpc",
    )


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 0.004), ("5u", 5e-6), ("6n", 6e-9), ("0n", 0)],
)
def test_timeouts_of_all_units(value, seconds):
    assert request(grpc_timeout=value).timeout == pytest.approx(seconds)


def test_binary_metadata():
    padded, bare = with_fields(("a-bin", "AP8=")), with_fields(("a-bin", "AP8"))
    assert padded.binary == bare.binary == {"a-bin": b"\x00\xff"}
    assert with_fields(("a-bin", "AP8,AQ")).binary == {"a-bin": b"\x00\xff"}  # the first counts
    assert with_fields(("a-bin", "")).binary == {"a-bin": b""}
    assert answer(with_fields(("a-bin", "AP!"))) == (
        400,
        13,
        'malformed binary metadata "AP!" in header "a-bin": illegal base64 data at input byte 2',
        "application/grpc",
    )
    assert answer(with_fields(("a-bin", "AP8,A")))[2].endswith(
        "illegal base64 data at input byte 5"
    )


def test_hosts():
    head = with_fields(("host", "a"), ("host", "b"))
    assert answer(head)[:3] == (
        400,
        13,
        "num values of :authority: 0, num values of host: 2, both must only have 1 value "
        "as per HTTP/2 spec",
    )


def test_unknown_encodings():
    head = request(grpc_encoding="snappy")
    text = 'grpc: Decompressor is not installed for grpc-encoding "snappy"'
    assert answer(head) == (200, 12, text, "application/grpc")
    fields = dict(Decoder(list, 1 << 24).decode(head.refusal))
    assert fields[b"grpc-accept-encoding"] == b"identity,gzip,deflate"
    for name in ("", "identity", "gzip", "deflate"):
        assert request(grpc_encoding=name).served


@pytest.mark.parametrize(
    "field",
    [
        ("Key", "upper case"),
        ("", "no name"),
        ("a b", "space in a name"),
        ("connection", "close"),
        (":path", "late"),
        (":unknown", "x"),
        ("a", "new\nline"),
        ("a", "nul\0"),
    ],
)
def test_what_http2_forbids(field):
    assert is_malformed(with_fields(field))
    assert is_malformed(with_fields(("grpc-timeout", "x"), field))
    assert is_malformed(request_head([(b":path", b"a"), (b":path", b"b")]))


def test_long_heads_are_not_remembered():
    grpc_request._remembered_head.cache_clear()
    for i in range(50):
        assert with_fields(("a", str(i).rjust(5000))).metadata["a"].strip() == str(i)
    assert grpc_request._remembered_head.cache_info().currsize == 0
    assert with_fields(("a", "b")) is with_fields(("a", "b"))


def test_quotes():
    assert grpc_request.quoted('a"\\\n\x01\u200b') == '"a\\"\\\\\\n\\x01\\u200b"'
