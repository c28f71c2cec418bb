"""Differs in an order: who is asked, who is not, and whose words are heard."""

from __future__ import annotations

from typing import Any

import pytest

from cradled.core.diff import DiffOptions
from cradled.core.values import Descriptor
from cradled.differs.ordered import OrderedDiffers
from cradled.errors import Error, NotFound, Unimplemented

MADE = Descriptor("made", f"sha256:{'0' * 64}", 1)


class Differ:
    """Gives or raises the same for both calls, and keeps what it was asked."""

    def __init__(self, answer: Descriptor | Error) -> None:
        self._answer = answer
        self.asked: list[Any] = []

    async def apply(self, *args: Any, **options: Any) -> Descriptor:
        return self._answered(options)

    async def compare(self, *args: Any) -> Descriptor:
        return self._answered(args)

    def _answered(self, asked: Any) -> Descriptor:
        self.asked.append(asked)
        if isinstance(self._answer, Error):
            raise self._answer
        return self._answer


async def both(differs: OrderedDiffers) -> list[Descriptor | Error]:
    found: list[Descriptor | Error] = []
    for ask in (
        lambda: differs.apply(MADE, None, ()),  # type: ignore[arg-type]
        lambda: differs.compare((), (), None, DiffOptions()),  # type: ignore[arg-type]
    ):
        try:
            found.append(await ask())  # type: ignore[no-untyped-call]
        except Error as error:
            found.append(error)
    return found


async def test_the_first_that_knows_how_is_the_last_asked() -> None:
    able, spare = Differ(MADE), Differ(MADE)
    assert await both(OrderedDiffers([Differ(Unimplemented("no")), able, spare])) == [MADE, MADE]
    assert (len(able.asked), len(spare.asked)) == (2, 0)


async def test_the_last_refusal_is_told() -> None:
    last = Unimplemented("unsupported diff media type: x")
    assert await both(OrderedDiffers([Differ(Unimplemented("no")), Differ(last)])) == [last, last]


async def test_a_failure_is_no_refusal() -> None:
    failure, spare = NotFound("content digest d"), Differ(MADE)
    assert await both(OrderedDiffers([Differ(failure), spare])) == [failure, failure]
    assert spare.asked == []


@pytest.mark.parametrize(("always", "asked"), [(False, False), (False, True), (True, False)])
async def test_syncing_by_order_or_on_request(always: bool, asked: bool) -> None:
    differ = Differ(MADE)
    await OrderedDiffers([differ], sync_fs=always).apply(MADE, None, (), sync_fs=asked)  # type: ignore[arg-type]
    assert differ.asked[0]["sync_fs"] is (always or asked)
