"""Pure. The filter language of list and subscribe requests (reference, services.md section 2).

``parse`` turns a request's expressions into one ``Filter``; ``Filter.match`` asks an adaptor for
field values. An adaptor gets the path of a field as a tuple and returns its value, or None where
the field is absent. The adaptors of maps join the rest of the path with ``field_key``.

Grammar, as the clients of the field know it::

    expression := selector { "," selector }            all selectors match
    selector   := path [ ("==" | "!=" | "~=") value ]  no operator: the field is present
    path       := field { "." field }

The tokeniser has one bit of state: after an operator a run of printable characters is a value
(it may hold dots and operators), elsewhere it is a field. A look ahead does not skip spaces,
which is why a space before a comma is an error while a space after it is not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from cradled.errors import InvalidArgument

if TYPE_CHECKING:
    from cradled import regexp

Adaptor = Callable[[tuple[str, ...]], str | None]

_OPERATORS = ("==", "!=", "~=")
_EXPECTED_OPERATOR = 'expected an operator ("=="|"!="|"~=")'
_FIELD_RUN = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR_RUN = re.compile(r"[=!~]+")
_QUOTES = '"/|'
_SIMPLE_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\",
}  # fmt: skip
_DIGITS = {8: "01234567", 16: "0123456789abcdefABCDEF"}
_NUMERIC_ESCAPES = {"x": (16, 2), "u": (16, 4), "U": (16, 8)}


class Selector(NamedTuple):
    """One condition on one field; without an operator the field must be present."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: regexp.Pattern | None = None

    def match(self, adaptor: Adaptor) -> bool:
        found = adaptor(self.path)
        if not self.operator:
            return found is not None
        if self.operator == "==":
            return found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        return self.pattern is not None and self.pattern.search(found or "")


class Filter:
    """Alternatives, each a conjunction of selectors. No alternative at all matches everything."""

    __slots__ = ("alternatives",)

    def __init__(self, alternatives: tuple[tuple[Selector, ...], ...] = ()) -> None:
        self.alternatives = alternatives

    def __bool__(self) -> bool:
        """False when everything matches, so that a list need not look at its fields."""
        return bool(self.alternatives)

    def match(self, adaptor: Adaptor) -> bool:
        """Whether an object whose fields the adaptor gives is selected."""
        if not self.alternatives:
            return True
        return any(all(s.match(adaptor) for s in group) for group in self.alternatives)

    def fields(self) -> set[str]:
        """The first part of every path: what the filter looks at."""
        return {selector.path[0] for group in self.alternatives for selector in group}


def parse(expressions: Iterable[str]) -> Filter:
    """The filter of a request's expressions, which are alternatives of one another.

    No expression, or an empty one, selects everything. Raises InvalidArgument
    ``filters: parse error: ...``.
    """
    alternatives = []
    everything = False
    for expression in expressions:
        if expression:
            alternatives.append(_Parser(expression).selectors())
        else:
            everything = True
    return Filter() if everything else Filter(tuple(alternatives))


def field_key(path: tuple[str, ...]) -> str:
    """The key that a path below a map field means: ``labels.a.b`` is the key ``a.b``."""
    return ".".join(path[1:])


class _ParseError(Exception):
    """A reason and where in the input it lies; becomes InvalidArgument."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason


class _Token(NamedTuple):
    position: int
    kind: str  # one of: field, value, quoted, operator, separator, end, other
    text: str = ""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.in_value = False

    def peek(self) -> str:
        """The next character, spaces included; empty at the end."""
        return self.text[self.position : self.position + 1]

    def next(self) -> _Token:
        while self.peek().isspace():
            self.position += 1
        start, char = self.position, self.peek()
        if not char:
            return _Token(start, "end")
        if char == "\0":
            raise _ParseError(start, "unexpected null")
        if char in _QUOTES:
            return self._token("quoted", self._quoted_end())
        if char in ",.":
            self.in_value = False
            return self._token("separator", start + 1)
        if operator := _OPERATOR_RUN.match(self.text, start):
            self.in_value = True
            return self._token("operator", operator.end())
        if self.in_value:
            self.in_value = False
            return self._token("value", self._value_end())
        if field := _FIELD_RUN.match(self.text, start):
            return self._token("field", field.end())
        return self._token("other", start + 1)

    def _token(self, kind: str, end: int) -> _Token:
        start, self.position = self.position, end
        return _Token(start, kind, self.text[start:end])

    def _value_end(self) -> int:
        for index in range(self.position, len(self.text)):
            char = self.text[index]
            if char == "," or char.isspace() or not char.isprintable():
                return index
        return len(self.text)

    def _quoted_end(self) -> int:
        """The position after the closing quote of the literal that starts here."""
        start, text = self.position, self.text
        quote, index = text[start], start + 1
        while index < len(text):
            char = text[index]
            if char == quote:
                return index + 1
            if char == "\0":
                raise _ParseError(start, "unexpected null")
            if char == "\n":
                break
            index = _escape(text, index, quote, start)[1] if char == "\\" else index + 1
        raise _ParseError(start, "quoted literal not terminated")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.scanner = _Scanner(text)

    def selectors(self) -> tuple[Selector, ...]:
        try:
            return self._selectors()
        except _ParseError as error:
            at, reason, text = error.position, error.reason, self.text
            where = f"[{text}]"
            if at < len(text):
                where = f"[{text[:at]} >|{text[at]}|< {text[at + 1 :]}]"
            raise InvalidArgument(f"filters: parse error: {where}: {reason}") from None

    def _selectors(self) -> tuple[Selector, ...]:
        selectors = [self._selector()]
        while char := self.scanner.peek():
            if char != ",":
                shown = char if char != "\0" else "\ufffd"
                raise _ParseError(self.scanner.position, f"unexpected input: {shown}")
            self.scanner.next()
            selectors.append(self._selector())
        return tuple(selectors)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self.scanner.peek() == ".":
            self.scanner.next()
            path.append(self._field())
        if self.scanner.peek() in ("", ","):
            return Selector(tuple(path))
        operator = self._operator()
        value = self._value(regular=operator == "~=")
        pattern = _compile(value) if operator == "~=" else None
        return Selector(tuple(path), operator, value, pattern)

    def _field(self) -> str:
        token = self.scanner.next()
        if token.kind == "field":
            return token.text
        if token.kind == "quoted":
            return _unquote(token, alternatives=False)
        raise _ParseError(token.position, "expected field or quoted")

    def _operator(self) -> str:
        token = self.scanner.next()
        if token.kind != "operator":
            raise _ParseError(token.position, _EXPECTED_OPERATOR)
        if token.text not in _OPERATORS:
            raise _ParseError(token.position, f'unsupported operator "{token.text}"')
        return token.text

    def _value(self, *, regular: bool) -> str:
        token = self.scanner.next()
        if token.kind in ("value", "field"):
            return token.text
        if token.kind == "quoted":
            return _unquote(token, alternatives=regular)
        raise _ParseError(token.position, "expected value or quoted")


def _unquote(token: _Token, *, alternatives: bool) -> str:
    quote, body = token.text[0], token.text[:-1]
    if quote != '"' and not alternatives:
        raise _ParseError(token.position, "invalid quote encountered")
    out, index = [], 1
    while index < len(body):
        if body[index] == "\\":
            code, index = _escape(body, index, quote, token.position)
            if code > 0x10FFFF or (code > 0xFF and body[index - 4] == "\\"):  # octal: one byte
                raise _ParseError(token.position, "unquoting failed: quote syntax error")
            out.append("\ufffd" if 0xD800 <= code < 0xE000 else chr(code))
        else:
            out.append(body[index])
            index += 1
    return "".join(out)


def _escape(text: str, index: int, quote: str, start: int) -> tuple[int, int]:
    """The code point a backslash sequence at ``index`` stands for, and the position after it."""
    char = text[index + 1 : index + 2]
    if char == "\0":
        raise _ParseError(start, "unexpected null")
    if char and char == quote:
        return ord(char), index + 2
    if char in _SIMPLE_ESCAPES:
        return ord(_SIMPLE_ESCAPES[char]), index + 2
    if char in _NUMERIC_ESCAPES:
        (base, count), first = _NUMERIC_ESCAPES[char], index + 2
    elif char and char in "01234567":
        (base, count), first = (8, 3), index + 1
    else:
        raise _ParseError(start, "illegal escape sequence")
    digits = text[first : first + count]
    if len(digits) != count or any(digit not in _DIGITS[base] for digit in digits):
        raise _ParseError(start, "illegal numeric escape sequence")
    return int(digits, base), first + count


@functools.lru_cache(256)
def _compile(expression: str) -> regexp.Pattern | None:
    """None for an expression that is not valid: it matches nothing."""
    from cradled import regexp  # costs a tenth of the daemon's start, and few filters search

    try:
        return regexp.compile(expression)
    except regexp.SyntaxFault:
        return None
