from __future__ import annotations

import asyncio
import os
import re
import stat
import tempfile
import threading
from pathlib import Path
from types import coroutine

import pytest

from cradled import spans
from cradled.aio import births, threads
from cradled.aio.keyed_lock import KeyedLock
from cradled.daemon import debug, stacks
from cradled.daemon.http1 import Handler, HttpError, Request
from cradled.rpc.eager import Starter


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def test_tasks_are_told_with_what_they_await_and_their_ages() -> None:
    loop = asyncio.get_running_loop()
    births.note(loop)
    event = asyncio.Event()
    task = asyncio.create_task(outer(event), name="of mine")
    await asyncio.sleep(0)
    text = stacks.report()
    loop.set_task_factory(None)
    told = text.partition("task of mine [waiting, age 0.")[2].partition("\n\n")[0].split("\n")[1:]
    assert [line.split()[0] for line in told] == ["Event.wait", "inner", "outer"]
    assert "test_daemon_stacks.py:" in told[1]
    event.set()
    await task
    assert births.age(task) is not None


async def test_calls_run_by_hand_are_told() -> None:
    event = asyncio.Event()
    starter = Starter(asyncio.get_running_loop())
    task: list[asyncio.Task[None] | None] = []
    asyncio.get_running_loop().call_soon(lambda: task.append(starter.start(outer(event))))
    while not task:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    (started,) = task
    assert started is not None
    names = [name for _, _, name in stacks.awaited(started.get_coro())]
    assert names[-3:] == ["outer", "inner", "Event.wait"]
    event.set()
    await started
    starter.close()


async def test_locks_spans_and_threads_are_told() -> None:
    locks: KeyedLock[str] = KeyedLock("test")
    inside = threading.Event()
    go_on = threading.Event()

    def work() -> None:
        inside.set()
        go_on.wait(10)

    with spans.span("mine", key="v"):
        async with locks("the key"):
            waiting = asyncio.create_task(take(locks))
            call = threads.begin("fs", work)
            while not inside.is_set():  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0)
            text = stacks.report()
            go_on.set()
            await call.result()
        await waiting
    assert "mine key=v [age 0." in text
    assert "test the key by mine [for 0." in text
    assert ", waited for since 0." in text
    assert "fs: test_locks_spans_and_threads_are_told.<locals>.work" in text
    assert re.search(r"thread cradled-fs-0 \[native id \d+, age -?\d\.\d\ds\]:\n", text)
    assert stacks._thread_age(1 << 30) == "unknown"
    assert "go_on.wait(10)" in text
    threads.close()


async def take(locks: KeyedLock[str]) -> None:
    async with locks("the key"):
        pass


@coroutine
def by_generator():  # type: ignore[no-untyped-def]
    yield


async def test_other_awaitables() -> None:
    async def awaiting() -> None:
        await by_generator()

    task = asyncio.create_task(awaiting())
    await asyncio.sleep(0)
    names = [name.rpartition(".")[2] for _, _, name in stacks.awaited(task.get_coro())]
    assert names == ["awaiting", "by_generator"]
    await task


async def test_reports_are_files_of_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    victim = tmp_path / "victim"
    victim.write_text("kept")
    path = tmp_path / "cradled.7.stacks.log"
    path.symlink_to(victim)
    text, told = stacks.write(7)
    assert told == str(path)
    assert path.read_text() == text
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert victim.read_text() == "kept"
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/none")
    assert stacks.write(os.getpid())[1].startswith("cannot write ")


def page(name: str) -> Handler:
    return debug.routes()[name]


async def get(path: str, **query: str) -> str:
    response = await page(path)(Request("GET", path, query))
    assert response.status == 200
    return response.body.decode()


async def test_pages() -> None:
    assert "/debug/pprof/goroutine" in await get("/debug/pprof/")
    assert "=== threads\nthread MainThread" in await get("/debug/pprof/goroutine", debug="2")
    assert "builtins.dict" in await get("/debug/pprof/heap")
    assert "locks held:" in await get("/debug/pprof/mutex")
    assert "thread MainThread" in await get("/debug/pprof/threadcreate")
    assert "pytest" in await get("/debug/pprof/cmdline")
    assert '"resident_bytes"' in await get("/debug/vars")
    with pytest.raises(HttpError, match="Not Found"):
        await page("/debug/pprof/")(Request("GET", "/debug/pprof/none", {}))


async def test_profile_is_of_what_runs() -> None:
    profile = page("/debug/pprof/profile")
    first = asyncio.ensure_future(profile(Request("GET", "", {"seconds": "0.2"})))
    await asyncio.sleep(0)
    with pytest.raises(HttpError, match="being made"):
        await profile(Request("GET", "", {}))
    lines = (await first).body.decode().splitlines()
    assert any((line.startswith("MainThread;") and "test_profile" in line) or ";" in line
               for line in lines)  # fmt: skip
    assert all(line.rpartition(" ")[2].isdecimal() for line in lines)
    for seconds in ("x", "0", "-1", "nan", "1e9"):
        with pytest.raises(HttpError, match="a number up to 300"):
            await profile(Request("GET", "", {"seconds": seconds}))


async def test_profile_ends_with_its_client() -> None:
    profile = page("/debug/pprof/profile")
    task = asyncio.ensure_future(profile(Request("GET", "", {"seconds": "300"})))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for thread in threading.enumerate():
        if thread.name == "profiler":
            thread.join(10)
            assert not thread.is_alive()
