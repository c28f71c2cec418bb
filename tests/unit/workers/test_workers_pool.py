"""The pool over workers that are real processes, but not confined: any user can run this."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cradled import errors
from cradled.workers.pool import LOCK, MOUNTPOINT, Pool

# A worker with jobs for the test besides its own.
WORKER = """
import json, os, signal, socket, sys, time
from cradled.workers import jobs, main
from cradled import errors

def fail(kind):
    raise getattr(errors, kind)("it failed")

jobs.JOBS |= {
    "pid": lambda params, fds, mountpoint: os.getpid(),
    "read": lambda params, fds, mountpoint: [os.read(fd, 100).decode() for fd in fds],
    "sleep": lambda params, fds, mountpoint: (os.write(fds[0], b"x"), time.sleep(600)),
    "die": lambda params, fds, mountpoint: os.kill(os.getpid(), signal.SIGKILL),
    "fail": lambda params, fds, mountpoint: fail(params["kind"]),
    "oops": lambda params, fds, mountpoint: {}["missing"],
    "roots": lambda params, fds, mountpoint: ROOTS,
    "mountpoint": lambda params, fds, mountpoint: mountpoint,
}
main.confine = lambda roots: None
params = json.loads(sys.argv[1])
ROOTS = params["roots"]
main.forked(params, [int(sys.argv[2])])
"""


class SpawningZygote:
    """Starts workers as children, so that the test knows all about them."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.fail: OSError | None = None

    async def fork(
        self, entry: str, params: dict[str, Any], fds: Sequence[int] = (), *, name: str = ""
    ) -> tuple[int, int]:
        assert entry == "cradled.workers.main:forked"
        if self.fail:
            raise self.fail
        command = [sys.executable, "-c", WORKER, json.dumps(params), str(fds[0])]
        child = subprocess.Popen(command, pass_fds=fds)  # noqa: ASYNC220
        self.children.append(child)
        return child.pid, os.pidfd_open(child.pid)

    def alive(self) -> list[int]:
        return [child.pid for child in self.children if child.poll() is None]


@pytest.fixture
async def zygote() -> AsyncIterator[SpawningZygote]:
    before = len(os.listdir("/proc/self/fd"))
    zygote = SpawningZygote()
    yield zygote
    for child in zygote.children:
        child.wait(20)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
async def pool(zygote: SpawningZygote, tmp_path: Path) -> AsyncIterator[Pool]:
    pool = Pool(zygote, str(tmp_path), size=2, idle=60)
    yield pool
    await pool.aclose()
    assert zygote.alive() == []


async def start_sleep(pool: Pool) -> asyncio.Task[Any]:
    """A job that never ends, once it has begun."""
    reader, writer = os.pipe()
    task = asyncio.create_task(pool.run("sleep", {}, [writer]))
    loop = asyncio.get_running_loop()
    begun = loop.create_future()
    loop.add_reader(reader, begun.set_result, None)
    done, _ = await asyncio.wait([begun, task], return_when=asyncio.FIRST_COMPLETED)
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
    assert begun in done, task.result()
    return task


async def test_a_worker_is_kept_for_the_next_job(pool: Pool, zygote: SpawningZygote) -> None:
    pids = [await pool.run("pid", {}) for _ in range(3)]
    assert pids == [zygote.children[0].pid] * 3


async def test_no_more_workers_than_slots(pool: Pool, zygote: SpawningZygote) -> None:
    pids = await asyncio.gather(*(pool.run("pid", {}) for _ in range(10)))
    assert len(set(pids)) <= 2
    assert len(zygote.children) <= 2


async def test_descriptors_travel(pool: Pool, tmp_path: Path) -> None:
    fds = []
    for number in range(3):
        (tmp_path / str(number)).write_text(f"file {number}")
        fds.append(os.open(tmp_path / str(number), os.O_RDONLY))
    for _ in range(2):
        result = await pool.run("read", {}, fds)
        for fd in fds:
            os.lseek(fd, 0, os.SEEK_SET)
        assert result == ["file 0", "file 1", "file 2"]
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("kind", ["NotFound", "Error", "FailedPrecondition"])
async def test_domain_errors_keep_their_class(pool: Pool, kind: str) -> None:
    with pytest.raises(errors.Error, match="it failed") as failure:
        await pool.run("fail", {"kind": kind})
    assert type(failure.value).__name__ == kind


async def test_unforeseen_errors_are_internal(pool: Pool, zygote: SpawningZygote) -> None:
    with pytest.raises(errors.Internal, match=r"oops.*KeyError.*missing"):
        await pool.run("oops", {})
    assert await pool.run("pid", {}) == zygote.children[0].pid


async def test_kernel_errors_name_the_path(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(errors.Error) as failure:
        await pool.run("usage", {"path": str(tmp_path / "nothing")})
    assert str(failure.value) == f"{tmp_path}/nothing: no such file or directory"


async def test_a_worker_that_dies(pool: Pool, zygote: SpawningZygote) -> None:
    with pytest.raises(errors.Aborted, match="worker died while it did die"):
        await pool.run("die", {})
    assert await pool.run("pid", {}) == zygote.children[1].pid


async def test_a_worker_that_died_while_idle(pool: Pool, zygote: SpawningZygote) -> None:
    first = await pool.run("pid", {})
    os.kill(first, signal.SIGKILL)
    zygote.children[0].wait(20)
    assert await pool.run("pid", {}) == zygote.children[1].pid


async def test_a_cancelled_job_ends_with_its_worker(pool: Pool, zygote: SpawningZygote) -> None:
    task = await start_sleep(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert zygote.alive() == []


async def test_cancelling_again_does_not_return_sooner(pool: Pool, zygote: SpawningZygote) -> None:
    task = await start_sleep(pool)
    os.kill(zygote.children[0].pid, signal.SIGSTOP)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert zygote.alive() == []


async def test_waiting_jobs_may_be_cancelled(pool: Pool, zygote: SpawningZygote) -> None:
    running = [await start_sleep(pool), await start_sleep(pool)]
    waiting = asyncio.create_task(pool.run("pid", {}))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert await pool.run("pid", {}) in zygote.alive()


async def test_idle_workers_end(zygote: SpawningZygote, tmp_path: Path) -> None:
    pool = Pool(zygote, str(tmp_path), idle=0)
    await pool.run("pid", {})
    await asyncio.to_thread(zygote.children[0].wait, 20)
    assert zygote.children[0].returncode == 0
    await pool.run("pid", {})
    assert len(zygote.children) == 2
    await pool.aclose()


async def test_closing_breaks_off_what_runs(zygote: SpawningZygote, tmp_path: Path) -> None:
    pool = Pool(zygote, str(tmp_path), size=1)
    running = await start_sleep(pool)
    waiting = asyncio.create_task(pool.run("pid", {}))
    await asyncio.sleep(0)
    await pool.aclose()
    with pytest.raises(errors.Aborted):
        await running
    with pytest.raises(errors.FailedPrecondition):
        await waiting
    with pytest.raises(errors.FailedPrecondition):
        await pool.run("pid", {})
    await pool.aclose()
    assert zygote.alive() == []


async def test_a_fork_that_fails(pool: Pool, zygote: SpawningZygote) -> None:
    zygote.fail = OSError(11, "no more processes")
    for _ in range(3):
        with pytest.raises(OSError, match="no more processes"):
            await pool.run("pid", {})
    zygote.fail = None
    assert await pool.run("pid", {}) in zygote.alive()


async def test_requests_that_are_too_large(pool: Pool) -> None:
    with pytest.raises(ValueError, match="over the limit"):
        await pool.run("pid", {"junk": "x" * (1 << 20)})


def try_lock(path: Path) -> Any:
    lock = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        lock.close()
        raise
    return lock


async def test_the_lock_tells_of_living_workers(pool: Pool, tmp_path: Path) -> None:
    await pool.run("pid", {})
    with pytest.raises(BlockingIOError):
        try_lock(tmp_path / LOCK)
    await pool.aclose()
    try_lock(tmp_path / LOCK).close()


async def test_no_worker_starts_while_the_root_is_being_cleaned(
    pool: Pool, zygote: SpawningZygote, tmp_path: Path
) -> None:
    with try_lock(tmp_path / LOCK), pytest.raises(errors.Aborted):
        await pool.run("pid", {})
    assert await pool.run("pid", {}) == zygote.children[1].pid


async def test_a_worker_that_sees_everything_does_one_job(
    pool: Pool, zygote: SpawningZygote, tmp_path: Path
) -> None:
    assert await pool.run("roots", {}) == [str(tmp_path), os.path.realpath(tmp_path)]
    assert await pool.run("roots", {}, anywhere=True) == []
    await asyncio.to_thread(zygote.children[1].wait, 20)
    assert zygote.children[1].returncode == 0
    assert await pool.run("pid", {}) == zygote.children[0].pid
    assert pool.covers(str(tmp_path / "x"))
    assert not pool.covers(str(tmp_path) + "x")


async def test_where_to_mount(pool: Pool, tmp_path: Path) -> None:
    mountpoint = tmp_path / MOUNTPOINT
    assert await pool.run("mountpoint", {}) == str(mountpoint)
    assert mountpoint.stat().st_mode & 0o777 == 0o700


async def test_a_busy_worker_ends_when_the_daemon_is_gone(
    zygote: SpawningZygote, tmp_path: Path
) -> None:
    pool = Pool(zygote, str(tmp_path), size=1)
    task = await start_sleep(pool)
    (worker,) = pool._busy
    worker._control.shutdown(2)  # what the end of the daemon does to its sockets
    await asyncio.to_thread(zygote.children[0].wait, 20)
    assert zygote.children[0].returncode == -signal.SIGIO
    with pytest.raises(errors.Aborted):
        await task
    await pool.aclose()
