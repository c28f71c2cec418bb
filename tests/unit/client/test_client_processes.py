"""Processes over fakes: what happens when the daemon comes and goes."""

from pathlib import Path
from typing import Any, cast

import pytest

from cradled.client import processes
from cradled.client.processes import Process
from cradled.client.session import Session
from cradled.core.scope import Scope
from cradled.core.tasks import Exit
from cradled.errors import NotFound, Unavailable
from cradled.rpc.stub import Transport

END = Exit(0, 3, 1)


class _Tasks:
    """Answers ``wait`` with what a script says, one after the other."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked = 0

    async def wait(self, id: str, exec_id: str) -> Exit:
        self.asked += 1
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return cast("Exit", answer)


def process(*script: Any) -> tuple[Process, _Tasks]:
    session = Session(cast("Transport", None), Scope("n"), Path("/nowhere"))
    tasks = _Tasks(*script)
    session.tasks = cast("Any", tasks)
    return Process(session, "c"), tasks


async def test_wait_outlasts_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_RETRY_SECONDS", 0.02)
    waiting, tasks = process(Unavailable("gone"), Unavailable("gone"), END)
    assert await waiting.wait() == END
    assert tasks.asked == 3


async def test_wait_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(processes, "_RETRIES", 5)
    waiting, tasks = process(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await waiting.wait()
    assert tasks.asked == 6


async def test_other_errors_are_told_at_once() -> None:
    waiting, tasks = process(NotFound("task c not found", verbatim=True))
    with pytest.raises(NotFound):
        await waiting.wait()
    assert tasks.asked == 1
