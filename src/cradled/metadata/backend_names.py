"""Async. What backends know objects by: ``<namespace>/<number>/<key>``.

A number is never used twice, not even after a crash. Numbers are reserved in blocks, so that a
name costs no commit of its own; the rest of a block is lost when the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cradled import identifiers
from cradled.errors import Error, InvalidArgument
from cradled.metadata.engine import Engine, Transaction

BLOCK = 1 << 20

_DIGITS = 18  # which a column has room for


class BackendNames:
    """The source of new names; one for all stores, since names of all of them share the numbers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next = self._end = 0

    async def new(self, namespace: str, key: str) -> str:
        """A name that no backend has heard yet."""
        while self._next == self._end:
            first = await self._engine.run(_reserve)
            self._next, self._end = first, first + BLOCK
        number = self._next
        self._next += 1
        return f"{namespace}/{number}/{key}"


def _reserve(tx: Transaction) -> int:
    row = tx.one("SELECT next FROM sequence")
    assert row is not None
    first: int = row[0]
    tx.execute("UPDATE sequence SET next=?", (first + BLOCK,))
    return first


def parsed(backend_name: str) -> tuple[str, int, str] | None:
    """(namespace, number, key) of such a name; None for a name of others."""
    namespace, _, rest = backend_name.partition("/")
    number, _, key = rest.partition("/")
    try:
        identifiers.validate(namespace)
    except InvalidArgument:
        return None
    usual = key and number.isascii() and number.isdecimal() and len(number) < _DIGITS
    return (namespace, int(number), key) if usual else None


@contextmanager
def translated(names: Mapping[str, str]) -> Iterator[None]:
    """Errors raised in the block speak of clients' keys instead of backend names."""
    try:
        yield
    except Error as error:
        for backend_name, key in names.items():
            if backend_name:
                error.what = error.what.replace(backend_name, key)
        raise
