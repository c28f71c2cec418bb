"""kill -9 of the daemon at random instants, while ctr and our client let containers live.

``CRADLED_STRESS_SEED`` repeats a run's choices (not its timing), ``CRADLED_STRESS_KILLS`` makes it
longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from harness import disk, leaks
from harness.daemon import Daemon, wait_until
from harness.lives import Ctr, Hands, Images, Killer, Library, People

KILLS = int(os.environ.get("CRADLED_STRESS_KILLS", "10"))
SEED = int(os.environ.get("CRADLED_STRESS_SEED") or random.randrange(1 << 32))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root"),
    pytest.mark.timeout(120 + 10 * KILLS),
]


async def test_nothing_acknowledged_is_lost_and_nothing_is_left(own_daemon: Daemon) -> None:
    print(f"CRADLED_STRESS_SEED={SEED}")
    killer = Killer(own_daemon, random.Random(SEED))
    ctr, library = Ctr(own_daemon), Library(own_daemon)
    people = [
        People(killer, hands, f"{kind}{number}", random.Random(f"{SEED}-{kind}-{number}"))
        for kind, hands in (("ctr", ctr), ("library", library))
        for number in range(2)
    ]
    both: list[Hands] = [ctr, library]
    images = Images(killer, both, own_daemon.directory, random.Random(f"{SEED}-images"))
    async with asyncio.TaskGroup() as group:
        for actor in (*people, images):
            group.create_task(actor.go_on())
        group.create_task(killer.kill(KILLS))
    await killer.end_listener(stop=True)
    assert killer.kills == KILLS
    lived = {name: code for person in people for name, code in person.lived.items()}
    assert len(lived) > KILLS / 6, "the machine is too slow to prove anything"
    check_exits(killer.told, lived)
    for name, blobs in images.kept.items():
        assert name in await images.listed()
        images.must_be_whole(name, blobs)
    for person in people:
        await check_kept(person)
    await asyncio.to_thread(remove_all, own_daemon)


def check_exits(told: list[Path], lived: dict[str, int]) -> None:
    """Nobody is told of an exit twice, nor of another status than the process had."""
    heard = 0
    for path in told:
        exits: Counter[tuple[str, str, int]] = Counter()
        for line in path.read_text().splitlines():
            if " /tasks/exit " not in line:
                continue
            event = json.loads(line.split(" /tasks/exit ", 1)[1])
            exits[event["container_id"], event["id"], event["pid"]] += 1
            if event["container_id"] == event["id"] in lived:
                heard += 1
                assert event.get("exit_status", 0) == lived[event["id"]], event
        assert [key for key, times in exits.items() if times > 1] == []
    assert heard


async def check_kept(person: People) -> None:
    """What was left alone is as it was left, and can be used and ended."""
    for life in person.kept:
        await person.must_be(life)
        if life.status == "RUNNING":
            assert await person.hands.execute(life.name, "echo", "hi") == "hi\n"
            await person.terminate(life)
        assert await person.hands.forget(life.name) == life.code
        await person.hands.remove(life.name)


def remove_all(daemon: Daemon) -> None:
    """Disk and metadata agree; after everything is removed, nothing is there at all."""
    for lease in daemon.ctr("leases", "ls", "-q").split():  # of imports that were lost
        daemon.ctr("leases", "rm", lease)
    wait_until(lambda: not disk.differences(daemon), lambda: str(disk.differences(daemon)))
    daemon.remove_containers()
    daemon.ctr("images", "rm", *daemon.ctr("images", "ls", "-q").split())
    disk.collect(daemon)
    for noun in ("images", "content", "tasks", "containers", "leases"):
        assert daemon.ctr(noun, "ls", "-q").split() == [], noun
    assert daemon.ctr("snapshots", "ls").splitlines()[1:] == []
    assert disk.differences(daemon) == []
    assert disk.unused(daemon) == []
    wait_until(lambda: not shims_and_mounts(daemon), lambda: str(shims_and_mounts(daemon)))


def shims_and_mounts(daemon: Daemon) -> list[str]:
    """What may live only as long as a container."""
    left = leaks.mounts_below(str(daemon.directory))
    assert daemon.process is not None
    pid = daemon.process.pid
    zygote = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for pid, command in leaks.marked_processes(daemon.mark).items():
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except FileNotFoundError:
            continue
        if str(pid) in zygote:
            continue
        if "shim" in name or "shim" in command or "runc" in name:
            left.append(f"{pid} {name} {command}")
    return left
