"""Pure. Regular expressions in RE2's syntax, searched in linear time.

Filters carry expressions that clients wrote for RE2. Python's ``re`` differs from it where it
hurts: it takes time without bound for some (``(a+)+$``), it knows back references and looking
around, and ``$`` means something else. So this is an automaton: ``compile`` parses an expression
into a program, ``Pattern.search`` runs all threads of the program at once, one character after the
other, remembering the steps it has made (a lazily built DFA).

Only whether there is a match is told, so greediness and groups mean nothing. Of Unicode classes
the general categories are known (``\\pL``, ``\\p{Lu}``), scripts are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Test = Callable[[str], bool]

MOST_REPEATS = 1000
MOST_STEPS = 100_000
MOST_DEPTH = 200
_MOST_REMEMBERED = 1 << 16  # threads, of all states

_POSIX: dict[str, str] = {
    "alnum": "09AZaz", "alpha": "AZaz", "ascii": "\x00\x7f", "blank": "\t\t  ",
    "cntrl": "\x00\x1f\x7f\x7f", "digit": "09", "graph": "!~", "lower": "az", "print": " ~",
    "punct": "!/:@[`{~", "space": "\t\r  ", "upper": "AZ", "word": "09AZaz__", "xdigit": "09AFaf",
}  # fmt: skip
_PERL = {"d": "09", "s": "\t\n\f\r  ", "w": "09AZaz__"}
_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_CATEGORIES = {"L", "M", "N", "P", "S", "Z", "C"} | {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi",
    "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cs",
}  # fmt: skip
_WORD = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")


class SyntaxFault(Exception):
    """The expression is not one of RE2's."""


class Flags(NamedTuple):
    fold: bool = False
    dot_all: bool = False
    lines: bool = False


# The tree: a node appends its steps to a program.


class Char(NamedTuple):
    test: Test


class Assert(NamedTuple):
    """``kind``: one of ``^ $`` (of a line), ``A z`` (of the text), ``b B`` (word)."""

    kind: str


class Sequence(NamedTuple):
    parts: list[Node]


class Choice(NamedTuple):
    parts: list[Node]


class Repeat(NamedTuple):
    """``most`` is -1 for no limit."""

    part: Node
    least: int
    most: int


Node = Char | Assert | Sequence | Choice | Repeat


class Split(NamedTuple):
    """A step to several others."""

    targets: list[int]


class Match(NamedTuple):
    """The end of a program."""


Step = Char | Assert | Split | Match


def compile(expression: str) -> Pattern:
    """Raises SyntaxFault."""
    parser = _Parser(expression)
    tree = parser.choice(0)
    if parser.at < len(expression):
        raise SyntaxFault("unexpected )")
    program: list[Step] = []
    _emit(tree, program)
    program.append(Match())
    return Pattern(program)


class _State(dict[str, "_State | None"]):
    """All threads at once, and what the last character was: see ``_kind``.

    Maps the next character (empty: the end) to the next state, None when there is a match.
    """

    def __init__(self, pattern: Pattern, threads: frozenset[int], before: str) -> None:
        super().__init__()
        self.pattern = pattern
        self.threads = threads
        self.before = before

    def __missing__(self, char: str) -> _State | None:
        following = self.pattern.turn(self, char)
        self[char] = following
        return following


class Pattern:
    """Threads are numbers of steps; ``Char`` and ``Assert`` go on to the step that follows."""

    def __init__(self, program: list[Step]) -> None:
        self._program = program
        self._states: dict[tuple[frozenset[int], str], _State] = {}
        self._remembered = 0
        self._start = self._state(frozenset((0,)), "none")

    def search(self, text: str) -> bool:
        """Whether the expression matches anywhere in the text."""
        state: _State | None = self._start
        for char in text:
            if state is None:
                return True
            state = state[char]
        return state is None or state[""] is None

    def turn(self, state: _State, char: str) -> _State | None:
        """The state after one more character, worked out."""
        wanting = self._closure(state.threads, _context(state.before, _kind(char)))
        if wanting is None:
            return None
        following = {number + 1 for number in wanting if char and self._takes(number, char)}
        self._remembered += 16 + len(following)
        if self._remembered > _MOST_REMEMBERED:
            self._states.clear()
            self._remembered = 0
            self._start = self._state(frozenset((0,)), "none")
        return self._state(frozenset(following | {0}), _kind(char))

    def _state(self, threads: frozenset[int], before: str) -> _State:
        key = threads, before
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _State(self, threads, before)
        return state

    def _closure(self, threads: frozenset[int], context: str) -> frozenset[int] | None:
        seen, wanting, waiting = set(threads), set(), list(threads)
        while waiting:
            number = waiting.pop()
            step = self._program[number]
            if isinstance(step, Match):
                return None
            if isinstance(step, Char):
                wanting.add(number)
                continue
            if isinstance(step, Split):
                targets = step.targets
            else:
                targets = [number + 1] if step.kind in context else []
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return frozenset(wanting)

    def _takes(self, number: int, char: str) -> bool:
        step = self._program[number]
        return isinstance(step, Char) and step.test(char)


def _kind(char: str) -> str:
    """What assertions ask of a character; at the beginning and at the end there is none."""
    if not char:
        return "none"
    if char in _WORD:
        return "word"
    return "line" if char == "\n" else "other"


def _context(before: str, after: str) -> str:
    """The assertions that hold between two characters of these kinds."""
    holds = "b" if (before == "word") != (after == "word") else "B"
    if before == "none":
        holds += "A"
    if after == "none":
        holds += "z"
    if before in ("none", "line"):
        holds += "^"
    if after in ("none", "line"):
        holds += "$"
    return holds


def _emit(node: Node, program: list[Step]) -> None:
    if len(program) > MOST_STEPS:
        raise SyntaxFault("expression too large")
    if isinstance(node, Char | Assert):
        program.append(node)
    elif isinstance(node, Sequence):
        for part in node.parts:
            _emit(part, program)
    elif isinstance(node, Choice):
        _emit_choice(node, program)
    else:
        _emit_repeat(node, program)


def _emit_choice(node: Choice, program: list[Step]) -> None:
    split = Split([])
    program.append(split)
    ends = []
    for part in node.parts:
        split.targets.append(len(program))
        _emit(part, program)
        end = Split([])
        program.append(end)
        ends.append(end)
    for end in ends:
        end.targets.append(len(program))


def _emit_repeat(node: Repeat, program: list[Step]) -> None:
    for _ in range(node.least):
        _emit(node.part, program)
    if node.most < 0:
        start = len(program)
        split = Split([start + 1])
        program.append(split)
        _emit(node.part, program)
        program.append(Split([start]))
        split.targets.append(len(program))
        return
    splits = []
    for _ in range(node.most - node.least):
        split = Split([len(program) + 1])
        program.append(split)
        splits.append(split)
        _emit(node.part, program)
    for split in splits:
        split.targets.append(len(program))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.flags = Flags()

    def choice(self, depth: int) -> Node:
        """Alternatives, up to the end or a closing parenthesis."""
        if depth > MOST_DEPTH:
            raise SyntaxFault("expression nests too deeply")
        parts = [self._sequence(depth)]
        while self._accept("|"):
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else Choice(parts)

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self._accept("\\Q"):
                parts += self._quoted()
                continue
            atom = self._atom(depth)
            if atom is not None:
                parts.append(self._repeated(atom))
            elif parts:  # after flags an operator is that of what stands before them
                parts[-1] = self._repeated(parts[-1])
        return Sequence(parts)

    def _quoted(self) -> list[Node]:
        literal, _, _ = self.text[self.at :].partition("\\E")
        self.at += len(literal)
        self._accept("\\E")
        parts: list[Node] = [self._literal(char) for char in literal]
        if parts:
            parts[-1] = self._repeated(parts[-1])
        return parts

    def _repeated(self, atom: Node) -> Node:
        repeat = self._repeat()
        if repeat is None:
            return atom
        self._accept("?")
        if self._repeat() is not None:
            raise SyntaxFault("invalid nested repetition operator")
        node = Repeat(atom, *repeat)
        if _repeats(node) > MOST_REPEATS:
            raise SyntaxFault("invalid repeat count")
        return node

    def _repeat(self) -> tuple[int, int] | None:
        """A repetition operator, as the least and the most."""
        for operator, repeat in (("*", (0, -1)), ("+", (1, -1)), ("?", (0, 1))):
            if self._accept(operator):
                return repeat
        end = self.text.find("}", self.at)
        if end < 0 or not self.text.startswith("{", self.at):
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not _is_number(least) or not (most == "" or _is_number(most)):
            return None
        self.at = end + 1
        low = int(least)
        high = low if not comma else int(most) if most else -1
        if low > MOST_REPEATS or high > MOST_REPEATS or (0 <= high < low):
            raise SyntaxFault("invalid repeat count")
        return low, high

    def _atom(self, depth: int) -> Node | None:
        """None where only flags were set."""
        if self.text[self.at] in "*+?":
            raise SyntaxFault("missing argument to repetition operator")
        start = self.at
        if self._repeat() is not None:
            raise SyntaxFault("missing argument to repetition operator")
        self.at = start
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        if char == ".":
            dot_all = self.flags.dot_all
            return Char(lambda c: dot_all or c != "\n")
        if char == "^":
            return Assert("^" if self.flags.lines else "A")
        if char == "$":
            return Assert("$" if self.flags.lines else "z")
        return self._literal(char)

    def _group(self, depth: int) -> Node | None:
        outer = self.flags
        if self._accept("?"):
            if self._accept("P<") or self._accept("<"):
                self._name()
            elif not self._set_flags():
                return None
        node = self.choice(depth + 1)
        if not self._accept(")"):
            raise SyntaxFault("missing closing )")
        self.flags = outer
        return node

    def _name(self) -> None:
        end = self.text.find(">", self.at)
        name = self.text[self.at : end] if end > 0 else ""
        if not name or not set(name) <= _WORD:
            raise SyntaxFault("invalid named capture")
        self.at = end + 1

    def _set_flags(self) -> bool:
        """Flags up to ``:`` (True: they are those of a group) or ``)`` (False)."""
        on, seen = True, False
        flags = self.flags._asdict()
        names = {"i": "fold", "s": "dot_all", "m": "lines"}
        while True:
            char = self._next()
            if char in names:
                flags[names[char]] = on
                seen = True
            elif char == "U":
                seen = True
            elif char == "-" and on:
                on, seen = False, False
            elif char in ":)" and (on or seen):
                self.flags = Flags(**flags)
                return char == ":"
            else:
                raise SyntaxFault("invalid or unsupported Perl syntax")

    def _escape(self) -> Node:
        char = self._next()
        if char in ("A", "z", "b", "B"):
            return Assert(char)
        test = self._class_escape(char)
        return Char(test) if test is not None else self._literal(self._escaped(char))

    def _class_escape(self, char: str) -> Test | None:
        """``\\d``, ``\\pL`` and the like; None for another escape."""
        if char.lower() in _PERL:
            test = self._folded(_between(_PERL[char.lower()]))
            return _negated(test) if char.isupper() else test
        if char not in ("p", "P"):
            return None
        name = self._next()
        if name == "{":
            end = self.text.find("}", self.at)
            name, self.at = (self.text[self.at : end], end + 1) if end >= 0 else ("", self.at)
        negative = (char == "P") != name.startswith("^")
        test = self._folded(_category(name.removeprefix("^")))
        return _negated(test) if negative else test

    def _escaped(self, char: str) -> str:
        """The character that an escape stands for."""
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char == "x":
            return self._hexadecimal()
        following = self.text[self.at : self.at + 1]
        if char == "0" or (char in "1234567" and following in tuple("01234567")):
            digits = char
            while len(digits) < 3 and self.text[self.at : self.at + 1] in tuple("01234567"):
                digits += self._next()
            return chr(int(digits, 8))
        if char.isascii() and not char.isalnum():
            return char
        raise SyntaxFault("invalid escape sequence")

    def _hexadecimal(self) -> str:
        if self._accept("{"):
            end = self.text.find("}", self.at)
            digits, self.at = (self.text[self.at : end], end + 1) if end >= 0 else ("", self.at)
        else:
            digits = self._next() + self._next()
        if not digits or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise SyntaxFault("invalid escape sequence")
        if len(digits) > 8 or int(digits, 16) > 0x10FFFF:
            raise SyntaxFault("invalid escape sequence")
        return chr(int(digits, 16))

    def _class(self) -> Node:
        negative = self._accept("^")
        tests: list[Test] = []
        first = True
        while first or not self.text.startswith("]", self.at):
            first = False
            tests.append(self._class_item())
        self.at += 1
        return Char(_negated(_any(tests)) if negative else _any(tests))

    def _class_item(self) -> Test:
        if self.text.startswith("[:", self.at):
            end = self.text.find(":]", self.at + 2)
            if end >= 0:
                name, self.at = self.text[self.at + 2 : end], end + 2
                ranges = _POSIX.get(name.removeprefix("^"))
                if ranges is None:
                    raise SyntaxFault("invalid character class range")
                test = self._folded(_between(ranges))
                return _negated(test) if name.startswith("^") else test
        char = self._next()
        if char == "\\":
            char = self._next()
            test_of = self._class_escape(char)
            if test_of is not None:
                return test_of
            char = self._escaped(char)
        last = char
        rest = self.text[self.at : self.at + 2]
        if rest.startswith("-") and rest != "-]" and len(rest) == 2:
            self.at += 1
            last = self._next()
            if last == "\\":
                last = self._escaped(self._next())
            if last < char:
                raise SyntaxFault("invalid character class range")
        return self._folded(_between(char + last))

    def _literal(self, char: str) -> Node:
        return Char(self._folded(char.__eq__))

    def _folded(self, test: Test) -> Test:
        """In both cases, where the flags say so."""
        if not self.flags.fold:
            return test
        return lambda c: any(test(variant) for variant in _variants(c))

    def _accept(self, text: str) -> bool:
        if self.text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self.at >= len(self.text):
            raise SyntaxFault("unexpected end")
        self.at += 1
        return self.text[self.at - 1]


def _variants(char: str) -> set[str]:
    """A character in both cases; those that become several characters are left out."""
    found = {char, char.lower(), char.upper(), char.lower().upper(), char.upper().lower()}
    return {variant for variant in found if len(variant) == 1}


def _category(name: str) -> Test:
    """A general category of Unicode, or ``Any``."""
    if name == "Any":
        return lambda char: True
    if name not in _CATEGORIES:
        raise SyntaxFault("invalid character class range")
    import unicodedata  # a megabyte that hardly any expression needs

    return lambda char: unicodedata.category(char).startswith(name)


def _between(ranges: str) -> Test:
    """``azAZ``: from a to z and from A to Z."""
    pairs = list(zip(ranges[::2], ranges[1::2], strict=True))
    return lambda char: any(low <= char <= high for low, high in pairs)


def _any(tests: list[Test]) -> Test:
    return lambda char: any(test(char) for test in tests)


def _negated(test: Test) -> Test:
    return lambda char: not test(char)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")


def _repeats(node: Node) -> int:
    """How often, at most, counted repetitions copy the innermost part."""
    if isinstance(node, Repeat):
        return max(node.least, node.most, 1) * _repeats(node.part)
    if isinstance(node, Sequence | Choice):
        return max((_repeats(part) for part in node.parts), default=1)
    return 1
