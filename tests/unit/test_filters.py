"""The filter language: what selects, what is refused and with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled import filters
from cradled.errors import InvalidArgument

FIELDS = {
    "id": "redis-1",
    "image": "docker.io/library/redis:7",
    "labels.containerd.io/gc.root": "2026",
    "labels.foo.bar": "baz",
    "topic": "/tasks/exit",
    "quote": 'a"b/c|d',
    "line": "one\ntwo",
}


def adaptor(path: tuple[str, ...]) -> str | None:
    return FIELDS.get(".".join(path))


def selects(*expressions: str) -> bool:
    return filters.parse(expressions).match(adaptor)


@pytest.mark.parametrize(
    "expression",
    [
        "id",
        "id==redis-1",
        "id == redis-1",
        "id==redis-1,image",
        "id==redis-1, image~=redis:[0-9]$",
        "image==docker.io/library/redis:7",
        'labels."containerd.io/gc.root"',
        'labels."containerd.io/gc.root"==2026',
        "labels.foo.bar==baz",
        "labels. foo.bar==baz",
        "topic~=|^/tasks/|",
        "topic~=/exit/",
        'topic~="^/tasks/"',
        "missing~=/.*/",
        "missing!=x",
        'quote=="a\\"b/c|d"',
        "quote~=/b\\/c|d/",
        'line=="one\\ntwo"',
        'id=="\\x72\\u0065\\U00000064\\151s-1"',
    ],
)
def test_selected(expression: str) -> None:
    assert selects(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "missing",
        "id==redis",
        'missing==""',
        "id!=redis-1",
        'missing!=""',
        "id,missing",
        "id~=^edis",
        "id~=[",
        "id~=*",
        "id~=redis(?=-1)",
        "id~=(r)\\1",
    ],
)
def test_not_selected(expression: str) -> None:
    assert not selects(expression)


def test_expressions_are_alternatives() -> None:
    assert selects("id==no", "id==redis-1")
    assert not selects("id==no", "id==nor-this")


def test_nothing_selects_everything() -> None:
    assert selects()
    assert selects("")
    assert selects("id==no", "")
    assert not filters.parse([])
    assert filters.parse(["id"])


def test_an_empty_alternative_does_not_hide_a_parse_error() -> None:
    with pytest.raises(InvalidArgument):
        filters.parse(["", "=="])


def test_fields_tells_what_is_looked_at() -> None:
    found = filters.parse(["namespace==moby,topic~=|^/tasks/|", "event.id==x"]).fields()
    assert found == {"namespace", "topic", "event"}


def test_field_key_joins_what_is_below_a_map() -> None:
    assert filters.field_key(("labels", "a", "b/c")) == "a.b/c"


# What the original answers, letter by letter.
ERRORS = {
    "foo , bar": '[foo  >|,|<  bar]: expected an operator ("=="|"!="|"~=")',
    "a. b==q , c": "[a. b==q >| |< , c]: unexpected input:  ",
    'a.b=="x': '[a.b== >|"|< x]: quoted literal not terminated',
    "a.b==/x/": "[a.b== >|/|< x/]: invalid quote encountered",
    "|a|==x": "[ >|||< a|==x]: invalid quote encountered",
    "==x": "[ >|=|< =x]: expected field or quoted",
    "a.": "[a.]: expected field or quoted",
    "a==": "[a==]: expected value or quoted",
    "a==,b": "[a== >|,|< b]: expected value or quoted",
    "a=x": '[a >|=|< x]: unsupported operator "="',
    "a===x": '[a >|=|< ==x]: unsupported operator "==="',
    "a x": '[a  >|x|< ]: expected an operator ("=="|"!="|"~=")',
    'a=="x"y': '[a=="x" >|y|< ]: unexpected input: y',
    'a=="\\q"': '[a== >|"|< \\q"]: illegal escape sequence',
    'a=="\\x4g"': '[a== >|"|< \\x4g"]: illegal numeric escape sequence',
    'a=="\\400"': '[a== >|"|< \\400"]: unquoting failed: quote syntax error',
    'a=="\\U00110000"': '[a== >|"|< \\U00110000"]: unquoting failed: quote syntax error',
    'a=="x\ny"': '[a== >|"|< x\ny"]: quoted literal not terminated',
    "a==x\0": "[a==x >|\0|< ]: unexpected input: \ufffd",
    "\0": "[ >|\0|< ]: unexpected null",
    '"\0"': '[ >|"|< \0"]: unexpected null',
    '"\\\0"': '[ >|"|< \\\0"]: unexpected null',
    "a-b==x": '[a >|-|< b==x]: expected an operator ("=="|"!="|"~=")',
}


@pytest.mark.parametrize("expression", ERRORS)
def test_refused(expression: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filters.parse([expression])
    assert str(caught.value) == f"filters: parse error: {ERRORS[expression]}: invalid argument"


@given(st.text(alphabet=st.sampled_from('a.,"/|=!~\\x4 \n\0é1_'), max_size=12))
def test_any_text_parses_or_is_refused(expression: str) -> None:
    try:
        found = filters.parse([expression])
    except InvalidArgument:
        return
    assert found.match(adaptor) in (True, False)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=20))
def test_a_quoted_value_is_any_text(value: str) -> None:
    quoted = "".join(f"\\U{ord(char):08x}" for char in value)
    assert filters.parse([f'x=="{quoted}"']).match(lambda _: value)
