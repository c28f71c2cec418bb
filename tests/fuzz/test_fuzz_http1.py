"""Requests made of and mutated by chance: a request or a refusal, whatever the bytes."""

from __future__ import annotations

from harness.corpus import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from cradled.daemon.http1 import HttpError, Request, end_of_head, parse

GOOD = b"GET /debug/pprof/goroutine?debug=2&x=%41 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"

WORDS = st.sampled_from([
    b"GET", b"HEAD", b"POST", b" ", b"  ", b"/", b"//", b"[", b"]", b"?", b"&", b"=", b"%", b"%zz",
    b"%00", b"#", b":", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9", b"\r", b"\n", b"\r\n", b"\0", b"\xff",
    b"http://a", b"..", b"Host", b"a" * 300,
])  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(WORDS)
    return bytes(data)


@fuzz(200)
@given(st.one_of(mutated(), st.lists(WORDS, max_size=20).map(b"".join), st.binary(max_size=200)))
@example(b"")
@example(b"GET //[::1 HTTP/1.1\r\n\r\n")
@example(b"GET /%ff%fe HTTP/1.1\r\n\r\n")
def test_any_bytes(data: bytes) -> None:
    end = end_of_head(data)
    assert -1 <= end <= len(data)
    head = data if end < 0 else data[:end]
    try:
        request = parse(head)
    except HttpError:
        return
    assert isinstance(request, Request)
    assert request.method in ("GET", "HEAD")
    assert head.startswith(request.method.encode())
    assert len(request.query) <= 32


@fuzz(40)
@given(st.integers(0, len(GOOD)))
def test_a_head_ends_once_it_is_whole(cut: int) -> None:
    assert end_of_head(GOOD[:cut]) == (len(GOOD) if cut == len(GOOD) else -1)
    assert end_of_head(GOOD + GOOD[:cut]) == len(GOOD)
