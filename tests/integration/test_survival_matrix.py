"""kill -9 at every named step: of the daemon, the zygote, a shim, runc.

Afterwards every container is in a true state and ends with its true code, every exit has been told
once, and nothing is left. ``CRADLED_SURVIVAL=wide`` crosses all points with all victims; else the
daemon, each of whose deaths takes a start, dies at some of its points.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.images import busybox_image
from harness.survival import (
    IMAGE,
    UNKNOWN,
    Ledger,
    Life,
    World,
    all_live,
    check,
    kept,
    lives_until_all_are_reached,
    points,
    prepared,
    until,
)

WIDE = os.environ.get("CRADLED_SURVIVAL") == "wide"
SOME = 8
WHEN = ("before", "after")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root"),
    pytest.mark.timeout(600 if WIDE else 300),
]

wide = pytest.mark.skipif(not WIDE, reason="CRADLED_SURVIVAL=wide does this too")

MORTAL = """#!/bin/sh
die() {
    mv "$point.$1" "$point.$1.$$" && kill -9 $$
} 2> /dev/null
for command; do
    case $command in create|start|exec|kill|delete) break ;; esac
done
point=$CRADLED_FAILPOINTS/runc.$command
die before
runc "$@"
status=$?
die after
exit $status
"""
RUNC = [f"runc.{c}.{w}" for c in ("create", "start", "exec", "kill", "delete") for w in WHEN]

FOREIGN = {"runtime.create.started"}
AFTER_A_SHIM = {"runtime.reap.buried", "runtime.reap.told", "runtime.recover.told"}
PROGRAM = {name for name in points("shim") if name.startswith("shim.program.")}
DAEMON = sorted({*points("runtime", "events")} - FOREIGN - AFTER_A_SHIM)
SHIM = sorted({*points("shim", "linux")} - PROGRAM)
ZYGOTE = points("zygote")
CLEARING = {"shim.program.deleting", "shim.program.deleted"}
UNATTENDED = {"shim.unlinked", "shim.leaving"}
"""Steps of a shim that no container has any more."""
SPARE = 3


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_image(IMAGE).write_oci_layout(tmp_path_factory.mktemp("image") / "busybox.tar")


@pytest.fixture
async def world(tmp_path: Path, archive: Path) -> AsyncIterator[World]:
    async with prepared(tmp_path / "d", archive) as world:
        yield world


@pytest.fixture
async def mortal(tmp_path: Path, archive: Path) -> AsyncIterator[World]:
    """A daemon with a runtime that runs runc, and dies before or after that where it shall."""
    program = tmp_path / "mortal"
    program.write_text(MORTAL)
    program.chmod(0o755)
    config = tmp_path / "config.toml"
    config.write_text(
        f'version = 3\n[plugins."io.containerd.shim.v1.manager"]\nbinary_name = "{program}"\n'
    )
    flags = ("--config", str(config))
    async with prepared(tmp_path / "d", archive, flags=flags) as world:
        yield world


async def test_the_daemon_dies_at_each_of_its_steps(world: World) -> None:
    async with Ledger.open(world) as ledger:
        lives: list[Life] = []
        async with kept(world):
            for point in DAEMON if WIDE else random.sample(DAEMON, SOME):
                world.points.arm([point])
                life = Life(world, f"d{len(lives)}")
                await life.live()
                assert world.points.waiting == [], f"nobody came to {point}"
                lives.append(life)
        await check(world, ledger, lives)


async def test_a_shim_dies_at_each_of_its_steps(world: World) -> None:
    async with Ledger.open(world) as ledger:
        lives = await lives_until_all_are_reached(world, SHIM)
        await check(world, ledger, lives)


@pytest.mark.parametrize("victim", ["daemon", "daemon and shim"])
async def test_the_daemon_dies_at_each_step_of_a_shim(world: World, victim: str) -> None:
    """All at once: each shim waits at a step of its own while the daemon dies."""
    async with Ledger.open(world) as ledger:
        steps = [step for step in SHIM if step not in UNATTENDED]
        world.points.arm(steps, signal.SIGSTOP)
        lives = [Life(world, f"s{number}") for number in range(len(steps) + SPARE)]
        living = asyncio.create_task(all_live(lives))
        pids = await world.points.stopped(*steps)
        await world.kill_daemon()
        if victim == "daemon and shim":
            world.kill(*pids)
        else:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await world.start()
        await living
        await check(world, ledger, lives)


async def test_the_zygote_dies_at_each_of_its_steps(world: World) -> None:
    async with Ledger.open(world) as ledger:
        lives: list[Life] = []
        for point in ZYGOTE:
            world.points.arm([point])
            life = Life(world, f"z{len(lives)}")
            await life.live()
            assert world.points.waiting == [], f"nobody came to {point}"
            lives.append(life)
        await check(world, ledger, lives)


@pytest.mark.parametrize("victim", ["shim", pytest.param("zygote", marks=wide)])
async def test_others_die_at_each_step_of_the_daemon(world: World, victim: str) -> None:
    async with Ledger.open(world) as ledger:
        lives: list[Life] = []
        for point in DAEMON:
            world.points.arm([point], signal.SIGSTOP)
            life = Life(world, f"o{len(lives)}")
            living = asyncio.create_task(life.live())
            (daemon,) = await world.points.stopped(point)
            world.kill(*(world.shims() if victim == "shim" else world.children()))
            os.kill(daemon, signal.SIGCONT)
            await living
            lives.append(life)
        await check(world, ledger, lives)


@pytest.mark.parametrize("point", sorted(AFTER_A_SHIM))
async def test_the_daemon_dies_while_it_clears_up_after_a_shim(world: World, point: str) -> None:
    async with Ledger.open(world) as ledger:
        life = Life(world, "c")
        world.points.arm(["shim.kill.asked"], signal.SIGSTOP)
        living = asyncio.create_task(life.live())
        shims = await world.points.stopped("shim.kill.asked")
        if point == "runtime.recover.told":
            await world.kill_daemon()
            world.kill(*shims)
            world.points.arm([point])
            await world.start_to_die()
        else:
            world.points.arm([point])
            world.kill(*shims)
            await world.died()
        await world.start()
        await living
        await check(world, ledger, [life])


async def test_runc_dies_before_and_after_each_of_its_commands(mortal: World) -> None:
    async with Ledger.open(mortal) as ledger:
        lives = await lives_until_all_are_reached(mortal, RUNC)
        await check(mortal, ledger, lives)


@pytest.mark.parametrize("point", sorted(CLEARING))
@pytest.mark.parametrize(
    ("step", "victim"),
    [
        ("shim.kill.asked", "daemon and shim"),
        pytest.param("shim.kill.asked", "shim", marks=wide),
        pytest.param("shim.exit.saved", "daemon and shim", marks=wide),
        pytest.param("shim.exit.saved", "shim", marks=wide),
    ],
)
async def test_the_program_that_clears_up_after_a_shim_dies(
    world: World, point: str, step: str, victim: str
) -> None:
    async with Ledger.open(world) as ledger:
        life = Life(world, "c", unseen={UNKNOWN})
        world.points.arm([step], signal.SIGSTOP)
        living = asyncio.create_task(life.live())
        shims = await world.points.stopped(step)
        world.points.arm([point])
        if victim == "daemon and shim":
            await world.kill_daemon()
        world.kill(*shims)
        await world.start()
        await living
        await until(lambda: not world.points.waiting, "the program has died")
        await check(world, ledger, [life])
        told = set(ledger.of("c", "c", life.pid))
        assert told == ({life.code} if step == "shim.exit.saved" else {UNKNOWN})
