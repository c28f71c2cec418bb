"""Pure. What may be done to a process in which state, and what state that leaves it in.

An init and an exec are different machines over the same states:

    init   created --start--> running <--resume-- paused      exec   created --start--> running
           created, running, paused --exit--> stopped                running --exit--> stopped
           running --pause--> (pausing) --> paused                   created, stopped --delete--> .
           created, stopped --delete--> deleted

``pausing`` is how a running process looks while the runtime pauses it; it changes no rule.
Refusals carry the texts that clients of the original know, and no error class (UNKNOWN).
"""

from __future__ import annotations

from cradled.errors import Error, NotFound

CREATED, RUNNING, STOPPED, PAUSED, PAUSING = 1, 2, 3, 4, 5
"""The states, with their numbers on the wire."""

DELETED = 0

_AFTER = {"start": RUNNING, "pause": PAUSED, "resume": RUNNING, "exit": STOPPED, "delete": DELETED}

_INIT_REFUSALS = {
    (CREATED, "pause"): "cannot pause task in created state",
    (CREATED, "resume"): "cannot resume task in created state",
    (CREATED, "checkpoint"): "cannot checkpoint a task in created state",
    (RUNNING, "start"): "cannot start a running process",
    (RUNNING, "resume"): "cannot resume a running process",
    (RUNNING, "delete"): "cannot delete a running process",
    (PAUSED, "start"): "cannot start a paused process",
    (PAUSED, "pause"): "cannot pause a paused container",
    (PAUSED, "delete"): "cannot delete a paused process",
    (PAUSED, "exec"): "cannot exec in a paused state",
    (STOPPED, "start"): "cannot start a stopped process",
    (STOPPED, "pause"): "cannot pause a stopped container",
    (STOPPED, "resume"): "cannot resume a stopped container",
    (STOPPED, "checkpoint"): "cannot checkpoint a stopped container",
    (STOPPED, "update"): "cannot update a stopped container",
    (STOPPED, "exec"): "cannot exec in a stopped state",
}

_EXEC_REFUSALS = {
    (RUNNING, "start"): "cannot start a running process",
    (RUNNING, "delete"): "cannot delete a running process",
    (STOPPED, "start"): "cannot start a stopped process",
}


class State:
    """The state of one process."""

    __slots__ = ("_refusals", "now")

    def __init__(self, *, init: bool) -> None:
        self.now = CREATED
        self._refusals = _INIT_REFUSALS if init else _EXEC_REFUSALS

    def check(self, action: str) -> None:
        """Raises Error with the refusal's text when ``action`` is not allowed now, NotFound when
        the process was deleted while one waited for its turn."""
        if self.now == DELETED:
            raise NotFound(f"cannot {action} a deleted process")
        state = RUNNING if self.now == PAUSING else self.now
        text = self._refusals.get((state, action))
        if text is not None:
            raise Error(text)

    def done(self, action: str) -> None:
        """``action`` has succeeded; if the process has ended meanwhile, that stands."""
        if self.now in (STOPPED, DELETED) and action != "delete":
            return
        self.now = _AFTER.get(action, self.now)
