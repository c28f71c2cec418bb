"""Where output goes: read as Go's ``net/url`` reads it, whatever it is."""

from __future__ import annotations

import pytest
from harness.corpus import fuzz
from hypothesis import given
from hypothesis import strategies as st

from cradled.errors import Error
from cradled.outputs import parse


# What the original's shim starts and opens for these, looked up there one by one.
@pytest.mark.parametrize(
    ("uri", "parsed"),
    [
        ("", ("fifo", "", [])),
        ("/run/x y%20", ("fifo", "/run/x y%20", [])),
        ("/run/a://b?c#d", ("fifo", "/run/a://b?c#d", [])),
        ("1a:///x", ("fifo", "1a:///x", [])),
        ("fifo:///x", ("fifo", "/x", [])),
        ("file:///a%20b+c", ("file", "/a b+c", [])),
        ("FILE://host/a%2Fb#fragment?no", ("file", "/a/b", [])),
        ("file:/a", ("file", "/a", [])),
        ("file:a", ("file", "", [])),
        ("binary://", ("binary", "", [])),
        ("binary:///l?b=1&a=2", ("binary", "/l", ["b", "1", "a", "2"])),
        ("binary:///l?a=2&a=3&c&=v", ("binary", "/l", ["a", "2", "c", "", "", "v"])),
        ("binary:///l?d=%zz&e=x;f=1&g=a+b%26&&", ("binary", "/l", ["g", "a b&"])),
        ("binary-v2:///l?x%3d=y=z", ("binary-v2", "/l", ["x=", "y=z"])),
        ("binary:///l?%C3%BC=%ff", ("binary", "/l", ["ü", "\udcff"])),
        ("binary:///l?a=%+1&b=%2&c=%&d=%٣٣", ("binary", "/l", [])),
        ("binary:///l?a=%00", ("binary", "/l", [])),
    ],
)
def test_names_of_streams(uri: str, parsed: tuple[str, str, list[str]]) -> None:
    assert parse(uri) == parsed


@pytest.mark.parametrize("path", ["/a%zz", "/%", "/%1", "/%00", "/%+1"])
def test_malformed_paths(path: str) -> None:
    with pytest.raises(Error, match='unable to parse stdout uri: parse "file://'):
        parse(f"file://{path}")


@fuzz(200)
@given(st.text() | st.text("binary-v2:/?&=#;%+1aF\0").map("file:".__add__))
def test_any_text_is_read_or_refused(uri: str) -> None:
    try:
        scheme, path, words = parse(uri)
    except Error:
        return
    assert scheme == scheme.lower()
    assert len(words) % 2 == 0
    if scheme != "fifo":
        assert not any("\0" in word and "\0" not in uri for word in (path, *words))


@fuzz(200)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.dictionaries(*2 * [st.text(st.characters(exclude_categories=["Cs"]))]),
)
def test_what_was_quoted_comes_back(path: str, pairs: dict[str, str]) -> None:
    from urllib.parse import quote, urlencode

    pairs = {key: value for key, value in pairs.items() if "\0" not in key + value}
    words = [word for pair in pairs.items() for word in pair]
    uri = f"binary:///{quote(path)}?{urlencode(pairs)}"
    assert parse(uri) == ("binary", f"/{path}", words)
