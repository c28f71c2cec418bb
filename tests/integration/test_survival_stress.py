"""kill -9 at random instants, of whatever is there, while containers come and go.

``CRADLED_STRESS_SEED`` repeats a run's choices (not its timing), ``CRADLED_STRESS_KILLS`` makes it
longer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from harness.images import busybox_image
from harness.survival import IMAGE, POLL, SHIM, Ledger, Life, World, check, kept, prepared

from cradled.oci.spec import Spec

KILLS = int(os.environ.get("CRADLED_STRESS_KILLS", "20"))
SEED = int(os.environ.get("CRADLED_STRESS_SEED") or random.randrange(1 << 32))
PEOPLE = 8
VICTIMS = ("daemon", "zygote", "shim", "shim", "runc", "runc", "daemon and shim")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root"),
    pytest.mark.timeout(120 + 10 * KILLS),
]


class Killer:
    """Kills until it has killed often enough; counts whom."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self.kills: Counter[str] = Counter()
        self.done = False

    async def kill(self, times: int) -> None:
        while self.kills.total() < times:
            await self._wait_for_progress()
            await asyncio.sleep(self._dice.uniform(0, self._dice.choice((0.1, 0.5, 1))))
            victim = self._dice.choice(VICTIMS)
            await self._world.up.wait()
            if await self._kill(victim):
                self.kills[victim] += 1
        self.done = True

    async def _wait_for_progress(self) -> None:
        """Let the living do something between two deaths, however busy the machine is."""
        goal = self._world.progress + PEOPLE
        while self._world.progress < goal:  # noqa: ASYNC110
            await asyncio.sleep(POLL)

    async def _kill(self, victim: str) -> bool:
        world = self._world
        if victim.startswith("daemon"):
            await world.kill_daemon()
        if victim == "daemon":
            return True
        if victim == "zygote":
            pids = world.children()
        else:
            pids = world.named("runc" if victim == "runc" else SHIM)
        chosen = self._dice.sample(pids, min(1, len(pids)))
        world.kill(*chosen)
        return bool(chosen)


def grouped(group: str) -> dict[str, object]:
    """Options that put a container into the shim of a group."""

    def annotate(spec: Spec) -> None:
        spec["annotations"] = {"io.containerd.runc.v2.group": group}

    return {"spec": [annotate]} if group else {}


async def live_on(world: World, killer: Killer, name: str, dice: random.Random) -> list[Life]:
    """One client: one container after the other, some in shims that they share."""
    lives: list[Life] = []
    while not killer.done:
        options = grouped(dice.choice(("", "", "a", "b")))
        life = Life(world, f"{name}-{len(lives)}", dice.randint(1, 120), options=options)
        lives.append(life)
        await life.live()
    return lives


async def test_whatever_dies(tmp_path: Path) -> None:
    print(f"CRADLED_STRESS_SEED={SEED}")
    archive = busybox_image(IMAGE).write_oci_layout(tmp_path / "busybox.tar")
    async with prepared(tmp_path / "d", archive) as world, Ledger.open(world) as ledger:
        killer = Killer(world, random.Random(SEED))
        async with kept(world), asyncio.TaskGroup() as group:
            people = [
                group.create_task(live_on(world, killer, f"p{n}", random.Random(f"{SEED}-{n}")))
                for n in range(PEOPLE)
            ]
            group.create_task(killer.kill(KILLS))
        lives = [life for person in people for life in person.result()]
        print(f"{len(lives)} lives, {killer.kills}, {sum(x.vanished for x in lives)} vanished")
        assert len(lives) > KILLS / 2
        await check(world, ledger, lives)
