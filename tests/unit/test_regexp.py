"""Regular expressions: RE2's syntax and meaning, and time that does not run away.

The tables' answers are those of the original's engine.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled import regexp


def search(expression: str, text: str) -> bool:
    return regexp.compile(expression).search(text)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("", ""),
        ("", "x"),
        ("b", "abc"),
        ("^/tasks/", "/tasks/exit"),
        ("a|b|", "x"),
        ("(a|bc)d$", "xbcd"),
        ("^(?:ab)+$", "abab"),
        ("^a{2,3}$", "aaa"),
        ("^a{2,}$", "aaaaa"),
        ("^a{2}$", "aa"),
        ("a{,2}", "a{,2}"),
        ("a{", "a{"),
        ("}]", "}]"),
        ("^.$", "é"),
        ("(?s)^.$", "\n"),
        ("(?m)^b$", "a\nb\nc"),
        ("(?i)ABC", "xabcx"),
        ("(?i:É)f", "éf"),
        ("(?i)k", "\N{KELVIN SIGN}"),
        ("a(?i)b", "aB"),
        ("(?i)a(?-i)b", "Ab"),
        (r"\bfoo\b", "a foo b"),
        (r"a\B", "ab"),
        (r"\A\d\d\z", "42"),
        (r"^\w+\s\S\W\D$", "a_9 !!x"),
        (r"\x41\x{e9}\101\n\.", "A\xe9A\n."),
        (r"\0", "\0"),
        (r"^\Qa.b*\E+$", "a.b**"),
        (r"\Q.", "."),
        (r"^\pL\p{Lu}\P{N}\p{^L}\p{Any}$", "aB--\n"),
        ("[]a]", "]"),
        ("^[a-c-]+$", "a-c"),
        (r"^[\d\-x]+$", "1-x"),
        (r"^[\pL[:digit:]]+$", "é1"),
        ("^[[:^alpha:]]$", "1"),
        ("^[^a]$", "\n"),
        ("(?P<name>a)(?<other>b)", "ab"),
        ("^a*?b??$", "aaab"),
        (r"\w(?U)*$", "ab"),
        ("(a*)*b", "aab"),
        ("^*", ""),
    ],
)
def test_found(expression: str, text: str) -> None:
    assert search(expression, text)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("b", "ac"),
        ("^/tasks/", "/containers/create"),
        ("^b", "ab"),
        ("a$", "a\n"),
        ("^b$", "a\nb"),
        (".", "\n"),
        ("[^a-z]", "abc"),
        (r"\bfoo\b", "foobar"),
        (r"\d", "\N{ARABIC-INDIC DIGIT ONE}"),
        (r"\w", "é"),
        (r"(?i)\P{Ll}", "AB"),
        ("a{2}", "a"),
        ("(?i)a(?-i)b", "AB"),
    ],
)
def test_not_found(expression: str, text: str) -> None:
    assert not search(expression, text)


@pytest.mark.parametrize(
    "expression",
    [
        "*", "a**", "a*+", "a{2}{3}", "a{2}*", "|*", "(*)", "(?i)*", "{2}", "a{3,2}", "a{1001}",
        "((a{100}){100})", "(", ")", "(a", "a)", "(?", "(?x)", "(?i", "(?-)", "(?=a)", "(?!a)",
        "(?<=a)", "(?P=n)", "(?P<>a)", "(?P<a-b>a)", "(?P<a", "[", "[a", "[b-a]", "[[:foo:]]",
        r"\1", r"\8", r"\q", r"\Z", r"\C", r"\x", r"\x4", r"\x{110000}", r"\x{", r"\p{Foo}",
        r"\pX", r"\p{L", "\\", "(" * 300 + ")" * 300, "(?:" * 3 + "(a{10}){100}b" + "){2})" * 3,
    ],
)  # fmt: skip
def test_not_an_expression(expression: str) -> None:
    with pytest.raises(regexp.SyntaxFault):
        regexp.compile(expression)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("(a+)+$", "a" * 20_000 + "b"),
        ("(a|a)*$", "a" * 20_000 + "b"),
        ("(.*a.*b.*c.*d)*$", "abc" * 5000),
        ("(x+x+)+y", "x" * 20_000),
    ],
)
def test_time_grows_with_the_text_only(expression: str, text: str) -> None:
    """Each of these would keep a backtracking engine busy for longer than the universe is old."""
    pattern = regexp.compile(expression)
    begun = time.process_time()
    pattern.search(text)
    assert time.process_time() - begun < 20


def test_what_is_remembered_is_bounded() -> None:
    pattern = regexp.compile("x[^y]y")
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 10_000)))
    assert not pattern.search(text)
    assert pattern.search(text + "xzy")
    assert sum(len(state) for state in pattern._states.values()) <= regexp._MOST_REMEMBERED + 1


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", "(?:ab)", "(?:a|b)"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}"])
SEQUENCES = st.lists(st.tuples(ATOMS, REPEATS).map("".join), max_size=4).map("".join)
EXPRESSIONS = st.lists(SEQUENCES, min_size=1, max_size=3).map("|".join)


@given(EXPRESSIONS, st.booleans(), st.text(alphabet="abc\n", max_size=8))
def test_it_agrees_with_re_where_the_two_are_the_same(
    expression: str, whole: bool, text: str
) -> None:
    anchored = f"^(?:{expression})$" if whole else expression
    found = re.search(anchored.replace("$", r"\Z"), text, re.ASCII)
    assert search(anchored, text) == (found is not None)


@given(st.text(alphabet="ab\\[](){}^$.*+?|-:Ppx1,<>ids", max_size=12), st.text(max_size=5))
def test_any_text_is_an_expression_or_not(expression: str, text: str) -> None:
    try:
        pattern = regexp.compile(expression)
    except regexp.SyntaxFault:
        return
    assert pattern.search(text) in (True, False)
    assert pattern.search(text) == regexp.compile(expression).search(text)
