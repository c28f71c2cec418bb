"""Which exits have been told."""

from __future__ import annotations

import pytest

from cradled.runtime import exits
from cradled.runtime.exits import ToldExits

KEY = ("ns", "c")


def test_an_exit_is_of_one_process() -> None:
    told = ToldExits()
    told.add([("ns", "c", "c", 7), ("ns", "c", "probe", 8)])
    assert told.has(KEY, "c", 7)
    assert told.has(KEY, "probe", 8)
    assert not told.has(KEY, "c", 9)
    assert not told.has(("other", "c"), "c", 7)


@pytest.mark.parametrize("process_id", ["", "probe"])
def test_what_was_deleted_is_known_for_a_while(
    monkeypatch: pytest.MonkeyPatch, process_id: str
) -> None:
    monkeypatch.setattr(exits, "_PASSING", 2)
    told = ToldExits()
    told.add([("ns", "c", "probe", 8)])
    told.forget(KEY, process_id)
    assert told.has(KEY, "probe", 8)
    for pid in (9, 10):
        told.add([("ns", "c", "probe", pid)])
        told.forget(KEY, "probe")
    assert not told.has(KEY, "probe", 8)


def test_a_probe_that_is_deleted_does_not_take_its_container_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exits, "_PASSING", 0)
    told = ToldExits()
    told.add([("ns", "c", "c", 7), ("ns", "c", "probe", 8)])
    told.forget(KEY, "probe")
    assert told.has(KEY, "c", 7)
    assert not told.has(KEY, "probe", 8)
    told.forget(KEY)
    assert not told.has(KEY, "c", 7)
