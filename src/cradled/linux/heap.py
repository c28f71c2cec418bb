"""Blocking. Where CPython puts objects in memory, for a process that others are forked from.

A page that a child writes to is the child's own from then on, and Python writes to an object for
as little as using it. So what children are going to use should lie together, away from what they
will not, and what they make should not go into the holes between either.

Used by the shim and the zygote: imports only C modules.
"""

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FunctionType
    from typing import Any

# How CPython manages small objects (Objects/obmalloc.c), and the size of an empty ``bytes``.
_POOL, _HEADER, _ALIGNMENT, _SMALLEST, _LARGEST = 16384, 48, 16, 48, 512
_BYTES = sys.getsizeof(b"")
_RUN = 4  # so many blocks in a row from a pool's beginning: nobody has used it since it was made
_POOLS = 64  # as many full pools' worth of holes are plugged at the most
# Larger objects are the C library's: the sizes of most, and how many holes of each are plugged.
_LARGE, _HOLES = range(_LARGEST + 1, 2065, _ALIGNMENT), 2

_plugs: list[object] = []  # for as long as this process lives


def plug_holes() -> None:
    """Allocate blocks of every size until the next of that size lies in memory yet unused.

    CPython gets small objects from pools of one size each.
    """
    plugs: list[object] = [None] * 16384  # of full length from the start: growing makes holes
    used = 0
    for size in range(_LARGEST, _SMALLEST - 1, -_ALIGNMENT):
        begin, run, last = used, 0, 0
        while run < _RUN and used - begin < _POOLS * _POOL // size and used < len(plugs):
            plugs[used] = bytes(size - _BYTES)
            here = id(plugs[used])
            used += 1
            run = 1 if here % _POOL == _HEADER else run + 1 if run and here == last + size else 0
            last = here
        for index in range(used - 1, used - 1 - run, -1):  # give back what is unused, in order
            plugs[index] = None
        used -= run
    del plugs[used:]
    _plugs.append(plugs)


def executed(play: Callable[[], object]) -> set[CodeType]:
    """The code that ``play`` runs through. Raises what it raises."""
    codes: set[CodeType] = set()

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        play()
    finally:
        sys.setprofile(None)
    return codes


def gather(codes: set[CodeType]) -> None:
    """Put the functions of all modules and their classes that have this code side by side.

    They are made anew, with their names and constants; what the interpreter has learnt about them
    is to be learnt again. A function that is kept elsewhere than by its name is left alone.
    """
    plug_holes()
    _plugs.append([bytes(size) for size in _LARGE for _ in range(_HOLES)])
    copies = _Copies(codes)
    _plugs.append(copies)  # without the originals there would be holes again
    for name, module in list(sys.modules.items()):
        if not isinstance(module, type(sys)):  # what else may be found there is not ours
            continue
        copies.replace_in(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name:
                copies.replace_in(value)


_FUNCTION: Any = type(plug_holes)


class _Copies:
    """Functions, and what belongs to them, that were copied."""

    def __init__(self, codes: set[CodeType]) -> None:
        self._codes = codes
        self._functions: dict[FunctionType, FunctionType] = {}
        self._texts: dict[str | bytes, str | bytes] = {}

    def replace_in(self, owner: Any) -> None:
        """Have a module or a class hold copies of its functions that are among the code."""
        for name, value in list(vars(owner).items()):
            if isinstance(value, _FUNCTION) and value.__code__ in self._codes:
                setattr(owner, name, self._function(value))

    def _function(self, old: FunctionType) -> FunctionType:
        if old not in self._functions:
            name, closure = self._text(old.__name__), old.__closure__
            code = self._code(old.__code__)
            new = type(old)(code, old.__globals__, name, old.__defaults__, closure)
            new.__qualname__ = self._text(old.__qualname__)
            new.__kwdefaults__ = old.__kwdefaults__
            new.__module__ = old.__module__
            self._functions[old] = new
        return self._functions[old]

    def _code(self, old: CodeType) -> CodeType:
        consts = tuple(
            self._code(value) if isinstance(value, type(old)) else self._text(value)
            for value in old.co_consts
        )
        names = {"co_name": self._text(old.co_name), "co_qualname": self._text(old.co_qualname)}
        return old.replace(co_consts=consts, **names)

    def _text(self, value: Any) -> Any:
        if type(value) not in (str, bytes) or len(value) < 2:
            return value
        if value not in self._texts:
            self._texts[value] = (value + value)[len(value) :]  # another object
        return self._texts[value]


def freeze() -> None:
    """Be ready to fork: collections in children leave alone what is there, new objects keep to
    themselves."""
    gc.collect()
    gc.freeze()
    plug_holes()
