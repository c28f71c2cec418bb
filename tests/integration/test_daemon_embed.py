"""The runtime inside a process: it runs containers, leaves the process alone, and is adopted."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import wait_until
from harness.images import busybox_image

import cradled
from cradled import errors
from cradled.client import Client, Status
from cradled.daemon.listeners import StartError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

IMAGE = "docker.io/library/busybox:test"
PROGRAM = str(Path(sys.executable).parent / "cradled")


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    yield tmp_path / "root", tmp_path / "state"
    await asyncio.to_thread(
        wait_until,
        lambda: not leaks.processes_with(str(tmp_path)) and not leaks.mounts_below(str(tmp_path)),
        "no process and no mount is left",
    )


async def prepare(client: Client, tmp_path: Path) -> None:
    tar = await asyncio.to_thread(busybox_image(IMAGE).write_oci_layout, tmp_path / "image.tar")
    (image,) = await client.images.import_(tar)
    assert image.name == IMAGE


async def test_a_container_from_image_to_output(places: tuple[Path, Path], tmp_path: Path) -> None:
    async with cradled.Runtime(*places) as client:
        await prepare(client, tmp_path)
        result = await client.run(IMAGE, ["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
        assert await client.containers.list() == []


def test_on_uvloop_too(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> bytes:
        async with cradled.Runtime(tmp_path / "root", tmp_path / "state") as client:
            await prepare(client, tmp_path)
            return (await client.run(IMAGE, ["echo", "hello"])).stdout

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == b"hello\n"


def process_state() -> dict[str, object]:
    root = logging.getLogger()
    umask = os.umask(0)
    os.umask(umask)
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "wakeup": signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False),
        "umask": umask,
        "cwd": os.getcwd(),
        "limits": {limit: resource.getrlimit(limit) for limit in range(16)},
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "environment": dict(os.environ),
        "logging": (list(root.handlers), root.level, logging.raiseExceptions),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "mounts": os.stat("/proc/self/ns/mnt").st_ino,
        "policy": type(asyncio.get_event_loop_policy()),
    }


async def test_the_process_is_left_as_it_was(places: tuple[Path, Path], tmp_path: Path) -> None:
    before = process_state()
    threads = set(threading.enumerate())
    descriptors = len(os.listdir("/proc/self/fd"))
    async with cradled.Runtime(*places) as client:
        await prepare(client, tmp_path)
        await client.run(IMAGE, ["true"])
        assert process_state() == before
    assert process_state() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not [
        thread
        for thread in set(threading.enumerate()) - threads
        if not thread.name.startswith(("cradled-fs", "cradled-bulk", "cradled-mount", "asyncio"))
    ]


async def test_directories_have_one_owner(places: tuple[Path, Path]) -> None:
    async with cradled.Runtime(*places):
        with pytest.raises(StartError, match=rf"root .* is in use .*\(pid {os.getpid()}\)"):
            async with cradled.Runtime(*places):
                pass
        with pytest.raises(StartError, match=r"state .* is in use"):
            async with cradled.Runtime(places[0].parent / "other", places[1]):
                pass
    async with cradled.Runtime(*places):
        pass


async def test_containers_outlive_the_block_and_are_found_again(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    async with cradled.Runtime(*places) as client:
        await prepare(client, tmp_path)
        container = await client.containers.create(
            IMAGE, ["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"], name="c"
        )
        task = await container.start(output="null")
        pid = (await task.state()).pid
    os.kill(pid, 0)
    async with cradled.Runtime(*places) as client:
        task = await (await client.containers.get("c")).task()
        state = await task.state()
        assert (state.pid, state.status) == (pid, Status.RUNNING)
        waiting = asyncio.ensure_future(task.wait())
        await task.kill("TERM")
        assert (await waiting).status == 5
        await (await client.containers.get("c")).remove(force=True)


async def test_a_daemon_adopts_what_the_library_left(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    root, state = places
    async with cradled.Runtime(root, state) as client:
        await prepare(client, tmp_path)
        container = await client.containers.create(IMAGE, ["sleep", "1000"], name="c")
        task = await container.start(output="null")
        pid = (await task.state()).pid
    address = str(tmp_path / "d.sock")
    daemon = await asyncio.create_subprocess_exec(
        PROGRAM, f"--root={root}", f"--state={state}", f"-a={address}"
    )
    try:
        await asyncio.to_thread(wait_until, lambda: os.path.exists(address), "the socket is there")
        async with cradled.connect(address) as client:
            events = client.events('topic=="/tasks/exit"')
            heard = asyncio.ensure_future(anext(events))
            container = await client.containers.get("c")
            task = await container.task()
            assert (await task.state()).pid == pid
            await task.kill("KILL")
            event = await heard
            assert (event.fields["container_id"], event.fields["exit_status"]) == ("c", 137)
            await events.aclose()
            await container.remove(force=True)
    finally:
        daemon.terminate()
        assert await daemon.wait() == 0


async def test_an_idle_daemon_stays_for_a_running_container(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    root, state = places
    async with cradled.Runtime(root, state) as client:
        await prepare(client, tmp_path)
        container = await client.containers.create(IMAGE, ["sleep", "1000"], name="c")
        pid = (await (await container.start(output="null")).state()).pid
    daemon = await asyncio.create_subprocess_exec(
        PROGRAM, f"--root={root}", f"--state={state}", f"-a={tmp_path}/d", "--exit-idle=0.3"
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await daemon.wait()
    os.kill(pid, signal.SIGKILL)
    assert await daemon.wait() == 0
    async with cradled.Runtime(root, state) as client:
        await (await client.containers.get("c")).remove(force=True)


async def test_waits_end_in_an_error_when_the_block_is_left(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    async with cradled.Runtime(*places) as client:
        await prepare(client, tmp_path)
        container = await client.containers.create(IMAGE, ["sleep", "1000"], name="c")
        task = await container.start(output="null")
        waiting = asyncio.ensure_future(task.wait())
        await asyncio.sleep(0)
    with pytest.raises(errors.Error):
        await waiting
    async with cradled.Runtime(*places) as client:
        await (await client.containers.get("c")).remove(force=True)
