"""Upgrades as the old daemon sees them, with programs that are no daemons."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cradled.daemon import upgrade
from cradled.daemon.config import Config
from cradled.daemon.listeners import Sockets
from cradled.daemon.upgrade import Leave, Outcome, Upgrades
from cradled.errors import FailedPrecondition, NotFound
from cradled.version import VERSION

HEIR = """
import os, socket, sys, time
sys.path[:0] = {path!r}
from cradled.daemon import handover
control = socket.socket(fileno=handover.FD)
hello, fds = handover.receive(control)
{body}
"""
LEAVE = Leave(5, 7, [(1, ("a",))])


class World:
    """The old daemon."""

    def __init__(self, directory: Path) -> None:
        self.left = asyncio.Event()
        self.stop = asyncio.Event()
        self.sockets = Sockets()
        self.sockets.open(str(directory / "s"), uid=os.geteuid(), gid=os.getegid())
        self.locks = tuple(
            os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in ("root", "state")
        )
        config = Config(root=str(directory), state=f"{directory}/state")
        self.upgrades = Upgrades(config, self.sockets, self.locks, self.left.set)
        self.upgrades.settle()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.upgrades.aclose()
    world.sockets.close()
    for lock in world.locks:
        os.close(lock)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The new programs that were started."""
    found, real = [], upgrade._spawn

    def spawn(control: int) -> int:
        found.append(real(control))
        return found[-1]

    monkeypatch.setattr(upgrade, "_spawn", spawn)
    return found


@pytest.fixture
def heir(monkeypatch: pytest.MonkeyPatch, spawned: list[int]) -> object:
    """Say what the new program does."""

    def does(body: str) -> None:
        program = HEIR.format(path=sys.path, body=body)
        command = [sys.executable, "-c", program]
        monkeypatch.setattr(upgrade, "_command", lambda: command)

    return does


READY = 'handover.send(control, say="ready", version="2")\n'
TURN = READY + 'turn, _ = handover.receive(control)\nassert turn["say"] == "turn"\n'


async def test_it_goes_well(world: World, heir, tmp_path: Path) -> None:
    heir(f"""
assert hello["handover"] == handover.VERSION
assert (hello["root"], hello["version"]) == ({str(tmp_path)!r}, {VERSION!r})
assert hello["sockets"] == [{str(tmp_path / "s")!r}]
assert "cradled.daemon.upgrade" in hello["modules"]
assert len(fds) == 3
{TURN}
assert turn == {{"say": "turn", "stopped": 5, "number": 7, "watchers": [[1, ["a"]]]}}
handover.send(control, say="serving", pause=1000)
assert handover.receive(control)[0] == {{"say": "yours"}}
time.sleep(1000)
""")
    ready = await world.upgrades.begin()
    assert ready.version == "2"
    await world.left.wait()
    assert world.upgrades.due
    waiting = asyncio.ensure_future(world.upgrades.outcome())
    assert await world.upgrades.hand_over(LEAVE, world.stop)
    assert world.sockets.all() == {}
    assert (tmp_path / "s").exists()
    assert not waiting.done()  # only the new one knows
    waiting.cancel()
    os.kill(ready.pid, 9)
    os.waitpid(ready.pid, 0)  # noqa: ASYNC222 - it has just been killed


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("time.sleep(1000)", "it has not been ready within 0.5 s"),
        ('handover.send(control, say="failed", why="no")', "no"),
        ('handover.send(control, say="serving")', "it ended with status 0"),
        ("sys.exit(4)", "it ended with status 4"),
        ("control.close(); time.sleep(1000)", "it closed its socket"),
    ],
)
async def test_it_does_not_start(
    world: World,
    heir,
    spawned: list[int],
    body: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heir(body)
    monkeypatch.setattr(upgrade, "READY_SECONDS", 0.5 if "ready" in why else 60)
    monkeypatch.setattr(upgrade, "_END_SECONDS", 0.1)
    with pytest.raises(FailedPrecondition, match=f"the new program does not start: {why}"):
        await world.upgrades.begin()
    last = await world.upgrades.outcome()
    assert last[:3] == (VERSION, "", os.getpid())
    assert why in last.error
    assert not world.left.is_set()
    assert [pid for pid in spawned if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("time.sleep(1000)", "it has not been serving within 0.5 s"),
        ('handover.send(control, say="failed", why="no")', "no"),
        ("os.kill(os.getpid(), 9)", "it ended with signal 9"),
    ],
)
async def test_it_does_not_serve(
    world: World, heir, body: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heir(TURN + body)
    monkeypatch.setattr(upgrade, "SERVING_SECONDS", 0.5 if "serving" in why else 60)
    for _ in range(2):
        await world.upgrades.begin()
        assert not await world.upgrades.hand_over(LEAVE, world.stop)
        assert not world.upgrades.due
        last = await world.upgrades.outcome()
        assert last[:3] == (VERSION, "2", os.getpid())
        assert why in last.error
        assert (tmp_path / "root").read_text() == f"{os.getpid()}\n"
        assert list(world.sockets.all()) == [str(tmp_path / "s")]


async def test_a_stop_meanwhile(world: World, heir) -> None:
    heir(TURN + "time.sleep(1000)")
    ready = await world.upgrades.begin()
    handing = asyncio.ensure_future(world.upgrades.hand_over(LEAVE, world.stop))
    await asyncio.sleep(0)
    world.stop.set()
    assert not await handing
    with pytest.raises(ProcessLookupError):
        os.kill(ready.pid, 0)


async def test_the_daemon_ends_while_the_new_one_starts(
    world: World, heir, spawned: list[int]
) -> None:
    heir("time.sleep(1000)")
    beginning = asyncio.ensure_future(world.upgrades.begin())
    await asyncio.sleep(0.01)
    with pytest.raises(FailedPrecondition, match="under way already"):
        await world.upgrades.begin()
    await world.upgrades.aclose()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert [pid for pid in spawned if Path(f"/proc/{pid}").exists()] == []


async def test_who_asked_may_go_away(world: World, heir) -> None:
    heir(READY + "time.sleep(1000)")
    beginning = asyncio.ensure_future(world.upgrades.begin())
    await asyncio.sleep(0)
    beginning.cancel()
    await world.left.wait()
    assert world.upgrades.due


async def test_the_first_process_of_a_namespace_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade.os, "getpid", lambda: 1)
    with pytest.raises(FailedPrecondition, match="first process of its pid namespace"):
        await world.upgrades.begin()


async def test_outcomes(world: World) -> None:
    with pytest.raises(NotFound):
        await world.upgrades.outcome()
    world.upgrades.settle(Outcome("1", "2", 3))
    assert (await world.upgrades.outcome()).pid == 3


@pytest.mark.parametrize("is_script", [True, False])
def test_the_program_as_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_script: bool
) -> None:
    """A script names its interpreter anew; a module is run by this one."""
    script = tmp_path / ("cradled" if is_script else "__main__.py")
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "--root", "r"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-I", "-m", "cradled.daemon", "--root", "r"])
    expected = (
        [str(script), "--root", "r"]
        if is_script
        else [sys.executable, "-I", "-m", "cradled.daemon", "--root", "r"]
    )
    assert upgrade._command() == expected
