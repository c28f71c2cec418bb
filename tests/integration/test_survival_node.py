"""The node under the daemon: rebooted, full, or with another daemon on it already."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.disk import TASKS, names
from harness.images import busybox_image
from harness.program import call, started
from harness.survival import IMAGE, Ledger, Life, World, prepared, until

from cradled.core.tasks import Status
from cradled.errors import Error, NotFound

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    archive = busybox_image(IMAGE).write_oci_layout(tmp_path / "busybox.tar")
    async with prepared(tmp_path / "d", archive) as world:
        yield world


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room."""
    path = tmp_path / "run"
    path.mkdir()
    options = "size=4m,nr_inodes=2000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
async def small(tmp_path: Path, run: Path) -> AsyncIterator[World]:
    """A daemon whose state is there."""
    archive = busybox_image(IMAGE).write_oci_layout(tmp_path / "busybox.tar")
    async with prepared(tmp_path / "d", archive, state=run / "state") as world:
        yield world


def fill(directory: Path, what: str) -> None:
    """Leave no room for anything."""
    directory.mkdir()
    with pytest.raises(OSError, match="No space left on device"):
        pour(directory, what)


def pour(directory: Path, what: str) -> None:
    with open(directory / "all", "wb", buffering=0) as file:
        for number in itertools.count():
            if what == "inodes":
                (directory / str(number)).mkdir()
            else:
                file.write(bytes(512))


async def test_after_a_reboot_containers_are_there_and_tasks_are_not(world: World) -> None:
    lives = [Life(world, name) for name in ("running", "created", "stopped")]
    async with world.client() as client:
        for life in lives:
            await life.prepare(client)
        for life in lives[::2]:
            await client.session.tasks.start(life.name)
        container = await client.containers.get("running")
        task = await container.task()
        writing = await task.exec(["sh", "-c", "echo kept > /file"], output=False)
        await writing.communicate()
        await client.session.tasks.kill("stopped", 9)
        await client.session.tasks.wait("stopped")
    await world.kill_daemon()
    await asyncio.to_thread(world.reboot)
    await world.start()
    async with world.client() as client:
        assert list(await client.session.tasks.list()) == []
        assert {each.id for each in await client.containers.list()} == {x.name for x in lives}
        assert names(world.daemon.root / TASKS / world.daemon.namespace) == []
        task = await (await client.containers.get("running")).start()
        reading = await task.exec(["cat", "/file"])
        assert (await reading.communicate()).output == "kept\n"
        for life in lives:
            await (await client.containers.get(life.name)).remove(force=True)
    await world.settled()


def test_a_second_daemon_on_the_same_state_is_told_who_has_it(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        root, address = f"--root={tmp_path}/other", f"--address={tmp_path}/other.sock"
        refused = call(tmp_path, root, f"--state={tmp_path}/state", address)
        text = f"cradled: state {tmp_path}/state is in use by another daemon"
        assert refused.stderr == f"{text} (pid {program.process.pid})\n"
        assert refused.returncode == 1
        assert program.process.poll() is None


@pytest.mark.parametrize("what", ["bytes", "inodes"])
async def test_a_full_state_directory(small: World, what: str) -> None:
    """Nothing new is made, nothing is left half made, what there is goes on, no exit is lost."""
    junk = small.daemon.state.parent / "junk"
    lasting, ending = Life(small, "lasting", 0), Life(small, "ending", 5)
    async with Ledger.open(small) as ledger:
        async with small.client() as client:
            for life in (lasting, ending):
                await life.prepare(client)
                await client.session.tasks.start(life.name)
            before = [*small.left(), *names(small.bundle("lasting"))]
            await asyncio.to_thread(fill, junk, what)
            late = Life(small, "late")
            await late.record(client)
            with pytest.raises(Error, match="no space left on device"):
                await (await client.containers.get("late")).create_task(output="null")
            with pytest.raises(NotFound):
                await client.session.tasks.get("late")
            task = await (await client.containers.get("lasting")).task()
            with pytest.raises(Error, match="no space left on device"):
                await task.exec(["true"], output=False)
            assert [*small.left(), *names(small.bundle("lasting"))] == before
            await ending.terminate(client)
            assert (await client.session.tasks.wait("ending")).status == 5
            await until(lambda: ledger.of("ending", "ending", ending.pid) == [5], "it is told")
        await small.kill_daemon()
        await small.start()  # though it is full
        async with small.client() as client:
            states = {x.id: x.status for x in await client.session.tasks.list()}
            assert states == {"lasting": Status.RUNNING, "ending": Status.STOPPED}
            assert (await client.session.tasks.delete("ending")).status == 5
        await asyncio.to_thread(shutil.rmtree, junk)
        for life in (lasting, ending, late):
            await life.live()
        assert small.left() == []
