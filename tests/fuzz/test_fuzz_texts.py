"""Small languages: filters, regular expressions, image names, digests, identifiers, options of
mounts, sizes and volumes. Each parser raises its own error for what is wrong, and nothing else;
where there is a way back, it leads to the same."""

from __future__ import annotations

from contextlib import suppress

import pytest
from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled import digest, filters, identifiers, references, regexp
from cradled.errors import InvalidArgument
from cradled.linux import mount
from cradled.oci import spec

# Long enough for what grows faster than its input to be noticed.
LONG = 20_000


def mixture(*words: str, size: int = 12) -> st.SearchStrategy[str]:
    """Texts of these words, and of anything."""
    word = st.one_of(st.sampled_from(words), st.sampled_from(words), st.text(max_size=3))
    return st.lists(word, max_size=size).map("".join)


# Filters

EXPRESSIONS = mixture(
    "name", "labels", ".", "==", "!=", "~=", "=", ",", '"', "'", "/", "|", "a", "\\", "\\x41",
    "\\u00e9", "\\U00000041", "\\n", " ", "\t", '"a.b"', "/a+/", "|a|", "(", "é", "\x00", "9",
)  # fmt: skip


def check_filter(text: str) -> None:
    try:
        parsed = filters.parse([text])
    except InvalidArgument:
        with pytest.raises(InvalidArgument, match=r"^filters: parse error: "):
            filters.parse([text])
        return
    assert not text or parsed.fields()
    for value in ("", "a", text, None):
        assert parsed.match(lambda path, value=value: value) in (True, False)


@replay("filters")
def test_kept_filters(data: bytes) -> None:
    check_filter(data.decode())


@fuzz(200)
@given(EXPRESSIONS)
def test_filters(text: str) -> None:
    check_filter(text)


@fuzz(120)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True),
            st.sampled_from(["==", "!="]),
            st.text(max_size=10),
        ),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), st.text(max_size=10)),
)
def test_filters_say_what_was_meant(
    selectors: list[tuple[str, str, str]], fields: dict[str, str]
) -> None:
    """However odd a value is, quoted it is that value."""
    text = ",".join(f"{field}{operator}{quoted(value)}" for field, operator, value in selectors)
    expected = all(
        (fields.get(field) == value) if operator == "==" else (fields.get(field, "") != value)
        for field, operator, value in selectors
    )
    assert filters.parse([text]).match(lambda path: fields.get(path[0])) == expected


def quoted(value: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'


# Regular expressions

PATTERNS = mixture(
    "a", "b", ".", "*", "+", "?", "|", "(", ")", "(?:", "(?i)", "(?P<n>", "[", "]", "[a-c]",
    "{2}", "{1,3}", "{0,}", "{1000}", "^", "$", "\\b", "\\B", "\\d", "\\pL", "\\p{Lu}", "\\Q",
    "[^a]", "\\E",    "\\x{41}", "[[:alpha:]]", "-", "\\", "(?-s:", "\\A", "\\z", "\\C", "\\1",
)  # fmt: skip


def check_pattern(expression: str) -> None:
    try:
        pattern = regexp.compile(expression)
    except regexp.SyntaxFault:
        return
    assert len(pattern._program) <= regexp.MOST_STEPS + regexp.MOST_REPEATS
    for text in ("", "a", "abcabc", "A\nb", "é1_", "a" * 100):
        assert pattern.search(text) == pattern.search(text)
    assert pattern._remembered <= regexp._MOST_REMEMBERED + len(pattern._program) + 16


@replay("regexp")
def test_kept_patterns(data: bytes) -> None:
    check_pattern(data.decode())


@fuzz(150)
@given(PATTERNS)
def test_patterns(expression: str) -> None:
    check_pattern(expression)


def test_what_a_pattern_remembers_is_bounded() -> None:
    """Its states can be as many as there are sets of threads."""
    pattern = regexp.compile("(a|b)*a(a|b){200}")
    text = "".join("ab"[number * number % 7 % 2] for number in range(5000))
    pattern.search(text)
    assert sum(len(threads) for threads, _ in pattern._states) <= 2 * regexp._MOST_REMEMBERED


# Image names

NAMES = mixture(
    "a", "B", "0", "docker.io", "library", "/", ":", "@", ".", "_", "__", "-", "--", "localhost",
    ":5000", "[::1]", "sha256:" + "0" * 64, "0" * 64, "latest", "index.docker.io", "\n", "é",
)  # fmt: skip


def check_name(text: str) -> None:
    references.familiar(text)
    try:
        parsed = references.parse(text)
    except InvalidArgument:
        return
    assert references.parse(str(parsed)) == parsed
    stored = references.normalise(text)
    assert references.normalise(stored) == stored
    assert references.normalise(references.familiar(stored)) == stored


@replay("references")
def test_kept_names(data: bytes) -> None:
    check_name(data.decode())


@fuzz(200)
@given(NAMES)
def test_names(text: str) -> None:
    check_name(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["a", "a.", "a-", "a/", "-", ".", "_", "A", "0:", "@a"])
def test_long_names_take_no_time(part: str) -> None:
    for text in (part * LONG, part * LONG + "!", "a.b/" + part * LONG + "!"):
        with suppress(InvalidArgument):
            references.parse(text)
        with suppress(InvalidArgument):
            identifiers.validate(text)
        digest.fault(text)


# Digests and identifiers

DIGESTS = mixture("sha256", "sha512", "md5", ":", "0" * 64, "a" * 128, "A", "+", "\n", "=", "-")


@fuzz(150)
@given(DIGESTS)
def test_digests(text: str) -> None:
    fault = digest.fault(text)
    if fault:
        with pytest.raises(InvalidArgument):
            digest.split(text)
    else:
        assert ":".join(digest.split(text)) == text
        assert text.isascii()


@fuzz(120)
@given(mixture("a", "Z", "0", ".", "-", "_", "\n", "é", "a" * 40), st.text(max_size=50))
def test_identifiers_and_labels(text: str, value: str) -> None:
    try:
        identifiers.validate(text)
    except InvalidArgument:
        pass
    else:
        assert text.isascii()
        assert len(text) <= identifiers.MAX_LENGTH
        assert "/" not in text
        assert text.strip(".-_\n") == text
    with suppress(InvalidArgument):
        identifiers.validate_label(text, value)


# Options of mounts

OPTIONS = st.lists(
    st.one_of(
        st.sampled_from([*mount._WORDS, *mount._PROPAGATION, "loop", "lowerdir=/a:/b", "uidmap="]),
        mixture("uidmap=", "gidmap=0:1:2", "X-containerd.", "ro", "=", ",", ":", "\\", "é"),
    ),
    max_size=8,
)


@fuzz(150)
@given(OPTIONS)
def test_options_of_mounts(words: list[str]) -> None:
    """Each word is one thing, and the last of two that differ counts."""
    try:
        options = mount.parse_options(words)
    except ValueError:
        assert any(word.startswith("X-containerd.") for word in words)
        return
    assert not options.flags & options.cleared
    assert all(word in words for word in options.data)
    again = mount.parse_options([*words, *words])
    assert (again.flags, again.propagation, again.data) == (
        options.flags,
        options.propagation,
        options.data * 2,
    )


@fuzz(120)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_layers_of_overlays(layers: list[str]) -> None:
    text = ":".join(name.replace("\\", "\\\\").replace(":", "\\:") for name in layers)
    assert mount.split_layers(text) == layers


@fuzz(200)
@given(mixture("\\040", "\\", "\\1", " ", "/a", "rw,ro", "-", "\\777"))
def test_layers_of_anything(text: str) -> None:
    assert len(mount.split_layers(text)) >= 1


# What people type


@replay("sizes")
def test_kept_sizes(data: bytes) -> None:
    check_typed(data.decode())


@fuzz(120)
@given(
    mixture("1", "9" * 400, ".", "e", "k", "MiB", "g", "t", " ", "-", "inf", "nan", "/a", ":", "ro")
)
def test_sizes_and_volumes(text: str) -> None:
    check_typed(text)


def check_typed(text: str) -> None:
    with suppress(InvalidArgument):
        assert spec.parse_size(text) >= 0
    with suppress(InvalidArgument):
        spec.volume(text)
    with suppress(InvalidArgument, ValueError):
        spec.build("n", "i", spec.cpus(float(text)))
