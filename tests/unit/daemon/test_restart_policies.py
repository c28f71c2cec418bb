"""What labels want of a container, and when it is done."""

from __future__ import annotations

import pytest

from cradled.core.containers import Container
from cradled.core.restart import (
    COUNT,
    EXPLICITLY_STOPPED,
    PENDING,
    POLICY,
    STATUS,
    Policy,
    Verdict,
    judge,
    restarts,
)
from cradled.core.tasks import Process, Status
from cradled.daemon.restart import Patience
from cradled.errors import InvalidArgument

NOW = 1_700_000_000.0
RUNNING = {STATUS: "running"}
START, STOP, NOTHING = Verdict.START, Verdict.STOP, Verdict.NOTHING


def task(status: Status, exit_status: int = 0, exited: float = 0) -> Process:
    return Process("c", "c", 7, status, exit_status=exit_status, exited_at=int(exited * 1e9))


def ended(exit_status: int, at: float = NOW) -> Process:
    return task(Status.STOPPED, exit_status, at)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Policy("always")),
        ("no", Policy("no")),
        ("always", Policy("always")),
        ("unless-stopped", Policy("unless-stopped")),
        ("on-failure", Policy("on-failure")),
        ("on-failure:0", Policy("on-failure")),
        ("on-failure:12", Policy("on-failure", 12)),
    ],
)
def test_policies(text: str, policy: Policy) -> None:
    assert Policy.parse(text) == policy
    assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    "text", ["never", "Always", "always:3", "on-failure:", "on-failure:-1", "on-failure:x", ":3"]
)
def test_policies_that_nobody_knows(text: str) -> None:
    with pytest.raises(InvalidArgument, match="restart policy"):
        Policy.parse(text)
    with pytest.raises(InvalidArgument, match="restart policy"):
        judge({**RUNNING, POLICY: text}, None)


@pytest.mark.parametrize(
    ("policy", "labels", "exit_status", "verdict"),
    [
        ("always", {}, 0, START),
        ("always", {EXPLICITLY_STOPPED: "true"}, 0, START),
        ("", {COUNT: "99"}, 3, START),
        ("no", {}, 3, NOTHING),
        ("unless-stopped", {}, 0, START),
        ("unless-stopped", {EXPLICITLY_STOPPED: "false"}, 3, START),
        ("unless-stopped", {EXPLICITLY_STOPPED: "true"}, 3, NOTHING),
        ("on-failure", {}, 0, NOTHING),
        ("on-failure", {COUNT: "99"}, 1, START),
        ("on-failure:2", {}, 1, START),
        ("on-failure:2", {COUNT: "1"}, 255, START),
        ("on-failure:2", {COUNT: "2"}, 1, NOTHING),
        ("on-failure:2", {COUNT: "1", PENDING: "1"}, 0, NOTHING),
    ],
)
def test_what_follows_an_exit(
    policy: str, labels: dict[str, str], exit_status: int, verdict: Verdict
) -> None:
    assert judge({**RUNNING, POLICY: policy, **labels}, ended(exit_status)) is verdict


@pytest.mark.parametrize(
    ("labels", "found", "verdict"),
    [
        ({}, ended(1), NOTHING),
        ({POLICY: "always"}, None, NOTHING),
        ({STATUS: "whatever"}, None, NOTHING),
        (RUNNING, None, START),
        (RUNNING, task(Status.RUNNING), NOTHING),
        (RUNNING, task(Status.PAUSED), NOTHING),
        (RUNNING, task(Status.CREATED), NOTHING),
        ({**RUNNING, PENDING: "1"}, task(Status.CREATED), START),
        ({**RUNNING, PENDING: "1"}, task(Status.RUNNING), NOTHING),
        ({**RUNNING, POLICY: "on-failure"}, None, NOTHING),
        ({**RUNNING, POLICY: "on-failure", PENDING: "1"}, None, START),
        ({**RUNNING, POLICY: "on-failure:1", COUNT: "1", PENDING: "1"}, None, NOTHING),
        ({STATUS: "stopped"}, None, NOTHING),
        ({STATUS: "stopped"}, ended(0), NOTHING),
        ({STATUS: "stopped"}, task(Status.RUNNING), STOP),
        ({STATUS: "stopped"}, task(Status.PAUSED), STOP),
        ({STATUS: "stopped", POLICY: "nonsense"}, task(Status.RUNNING), STOP),
    ],
)
def test_states(labels: dict[str, str], found: Process | None, verdict: Verdict) -> None:
    assert judge(labels, found) is verdict


def test_count() -> None:
    assert [restarts({}), restarts({COUNT: "12"}), restarts({COUNT: "x"})] == [0, 12, 0]


def record(age: float, labels: dict[str, str] = RUNNING) -> Container:
    return Container("c", labels, updated_at=int((NOW - age) * 1e9))


def test_a_failure_is_followed_at_once_and_an_ordered_end_a_little_later() -> None:
    for exit_status, seconds in ((1, 0.1), (139, 0.1), (0, 1), (137, 1), (143, 1)):
        due = Patience(10).due(START, record(60), ended(exit_status), NOW)
        assert due - NOW == pytest.approx(seconds, abs=1e-3)


def test_a_crash_loop_gets_slower_until_it_runs_for_long() -> None:
    patience, now, waits = Patience(10), NOW, []
    for _ in range(10):
        due = patience.due(START, record(60), ended(1, now), now)
        assert patience.due(START, record(60), ended(1, now), now + 0.01) == due, "asked twice"
        waits.append(round(due - now, 2))
        patience.started(due)
        now = due + 0.5
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    now += 10
    assert patience.due(START, record(60), ended(1, now), now) - now == pytest.approx(0.1, abs=1e-3)


def test_a_failed_start_is_tried_again_later_and_later() -> None:
    patience = Patience(10)
    waits = [round(patience.failed(NOW), 2) for _ in range(9)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    pending = record(0, {**RUNNING, PENDING: "1"})
    assert patience.due(START, pending, None, NOW) == NOW + 10


def test_whoever_works_on_a_container_is_not_disturbed() -> None:
    patience = Patience(10)
    assert patience.due(START, record(0), None, NOW) == NOW + 5, "it is about to make the task"
    assert patience.due(START, record(60), None, NOW) <= NOW
    patience.disappeared(NOW)
    assert patience.due(START, record(60), None, NOW) == NOW + 5, "it is about to remove it"
    assert patience.due(STOP, record(2), task(Status.RUNNING), NOW) == NOW + 8, "it gives it time"


def test_a_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    assert Patience(10).due(START, record(-3600), None, NOW) == NOW
    assert Patience(10).due(START, record(60), ended(1, NOW + 3600), NOW) == NOW
