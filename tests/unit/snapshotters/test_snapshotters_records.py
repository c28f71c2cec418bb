"""The table of snapshots, where it is closed under the hands of those who use it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cradled.core.snapshots import Kind
from cradled.errors import Unavailable
from cradled.snapshotters.records import Records


def test_closing_in_the_middle(tmp_path: Path) -> None:
    """Calls that nobody waits for go on in their threads: they end, and nothing crashes."""
    records = Records(str(tmp_path / "metadata.db"))
    ids = iter(range(1, 1_000_000))
    begun = threading.Barrier(9)
    ended: list[str] = []

    def use(kind: str) -> None:
        begun.wait()
        try:
            while True:
                if kind == "read":
                    records.all()
                else:
                    id = next(ids)
                    records.add(id, f"k{id}", "", Kind.ACTIVE, {})
        except Unavailable as error:
            ended.append(str(error))

    users = [threading.Thread(target=use, args=(kind,)) for kind in ("read", "write") * 4]
    for user in users:
        user.start()
    begun.wait()
    records.close()
    for user in users:
        user.join()
    assert ended == ["snapshotter is closed: unavailable"] * 8
    with pytest.raises(Unavailable):
        records.get("k1")
