"""The fork server with real processes: what a child starts with, and who survives whom."""

import asyncio
import json
import os
import resource
import select
import signal
import socket
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cradled import failpoints
from cradled.linux import limits
from cradled.zygote import client, protocol
from cradled.zygote.client import MAX_FDS, Zygote, ZygoteLost

# The C library keeps signals 32 and 33 to itself: nobody can reset them.
OURS = ~(3 << 31)

ENTRIES = """
    import json, os, signal, sys

    def report(params, fds):
        status = dict(
            line.split(":", 1) for line in open("/proc/self/status").read().splitlines()
        )
        facts = {
            "params": params, "pid": os.getpid(), "sid": os.getsid(0), "pgid": os.getpgid(0),
            "ppid": os.getppid(), "cwd": os.getcwd(), "umask": os.umask(0),
            "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
            "links": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
            "ignored": status["SigIgn"].strip(), "blocked": status["SigBlk"].strip(),
            "caught": status["SigCgt"].strip(), "threads": status["Threads"].strip(),
            "comm": open("/proc/self/comm").read().strip(), "fds": fds,
            "oom": open("/proc/self/oom_score_adj").read().strip(),
            "inheritable": [os.get_inheritable(fd) for fd in fds],
            "files": open("/proc/self/limits").read().partition("Max open files")[2].split()[0],
            "env": os.environ.get("GREETING"), "modules": sorted(sys.modules),
        }
        os.write(fds[0], json.dumps(facts).encode())

    def wait(params, fds):
        os.write(fds[0], b"here")
        os.read(fds[1], 1)

    def fail(params, fds):
        raise RuntimeError("no")

    def leave(params, fds):
        sys.exit(params["status"])

    def second(params, fds):
        os.write(fds[0], b"0")
        os.write(fds[1], b"1")
"""


@pytest.fixture
async def zygote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Zygote]:
    (tmp_path / "zygote_entries.py").write_text(textwrap.dedent(ENTRIES))
    monkeypatch.syspath_prepend(str(tmp_path))
    zygote = Zygote(["zygote_entries", "no_such_module"], env={"GREETING": "hello"})
    before = open_fds()
    yield zygote
    await zygote.aclose()
    assert open_fds() == before


def open_fds() -> set[str]:
    """Descriptors of this process that matter (the loop's own stay)."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


def drain(fd: int) -> bytes:
    with open(fd, "rb") as pipe:
        return pipe.read()


async def until(condition: Callable[[], bool]) -> None:
    # Another process makes it true, without a word.
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def asked(zygote: Zygote) -> None:
    """Wait until a fork has been asked for."""
    await until(zygote._lock.locked)
    await asyncio.sleep(0)


async def ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_reader(pidfd, done.cancel)
    with suppress(asyncio.CancelledError):
        await done
    loop.remove_reader(pidfd)
    os.close(pidfd)


async def run(zygote: Zygote, function: str, params: dict[str, Any], **options: Any) -> Any:
    """Fork a child and return what it wrote."""
    reading, writing = os.pipe()
    try:
        pid, pidfd = await zygote.fork(f"zygote_entries:{function}", params, [writing], **options)
    finally:
        os.close(writing)
    data = await asyncio.to_thread(drain, reading)
    await ended(pidfd)
    return json.loads(data) | {"forked": pid} if data else None


async def test_a_child_starts_from_a_clean_slate(zygote: Zygote) -> None:
    leak_read, leak_write = os.pipe()
    facts = await run(zygote, "report", {"text": "ä", "list": [1, None, 2.5], "raw": None})
    os.close(leak_read)
    os.close(leak_write)
    assert facts["params"] == {"text": "ä", "list": [1, None, 2.5], "raw": None}
    assert facts["pid"] == facts["forked"] == facts["sid"] == facts["pgid"]
    assert facts["ppid"] == zygote.pid != os.getpid()
    assert facts["cwd"] == "/"
    assert facts["umask"] == 0o022
    assert facts["links"] == ["/dev/null"] * 3
    (fd,) = facts["fds"]
    assert len(set(facts["open"]) - {0, 1, 2, fd}) == 1  # that of the listing itself
    assert facts["inheritable"] == [False]
    assert int(facts["ignored"], 16) & OURS == 0
    assert int(facts["blocked"], 16) == int(facts["caught"], 16) == 0
    assert facts["threads"] == "1"
    assert facts["env"] == "hello"
    assert not {"asyncio", "logging", "dataclasses", "typing", "pytest"} & set(facts["modules"])


async def test_children_have_the_usual_number_of_files(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(limits, "_usual", (123, hard))  # as if this process had raised its own
    assert (await run(zygote, "report", {}))["files"] == "123"


async def test_name_and_oom_score_are_set(zygote: Zygote) -> None:
    facts = await run(zygote, "report", {}, name="cradled-shim", oom_score_adj=7)
    assert (facts["comm"], facts["oom"]) == ("cradled-shim", "7")


async def test_descriptors_keep_their_order(zygote: Zygote) -> None:
    pipes = [os.pipe() for _ in range(2)]
    _, pidfd = await zygote.fork("zygote_entries:second", {}, [pipes[1][1], pipes[0][1]])
    await ended(pidfd)
    assert [os.read(pipe[0], 10) for pipe in pipes] == [b"1", b"0"]
    for fd in (fd for pipe in pipes for fd in pipe):
        os.close(fd)


async def test_a_pidfd_comes_even_for_a_child_that_is_gone(zygote: Zygote) -> None:
    for status in (0, 3) * 10:
        _, pidfd = await zygote.fork("zygote_entries:leave", {"status": status})
        await ended(pidfd)


async def test_children_are_reaped(zygote: Zygote) -> None:
    pidfds = [(await zygote.fork("zygote_entries:fail", {}))[1] for _ in range(5)]
    for pidfd in pidfds:
        await ended(pidfd)
    await run(zygote, "report", {})  # one more round through the zygote's loop
    children = Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children")
    await until(lambda: not children.read_text().split())


async def test_many_at_once(zygote: Zygote) -> None:
    facts = await asyncio.gather(*(run(zygote, "report", {"n": n}) for n in range(20)))
    assert [f["params"]["n"] for f in facts] == list(range(20))
    assert len({f["pid"] for f in facts}) == 20


async def test_children_outlive_the_zygote(zygote: Zygote) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        _, pidfd = await zygote.fork("zygote_entries:wait", {}, [theirs.fileno()] * 2)
    assert await asyncio.to_thread(ours.recv, 4) == b"here"
    await zygote.aclose()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(0) == []
    with ours:
        ours.send(b"x")
    await ended(pidfd)


async def test_a_dead_zygote_is_replaced(zygote: Zygote) -> None:
    await run(zygote, "report", {})
    first = zygote.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    facts = await run(zygote, "report", {})
    assert facts["ppid"] == zygote.pid != first


async def test_a_zygote_that_does_not_answer_is_replaced(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(zygote, "report", {})
    first = zygote.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(client, "PATIENCE", 2.0)  # the next one has to start in this time
    assert (await run(zygote, "report", {}))["ppid"] == zygote.pid != first


async def test_a_zygote_that_dies_before_it_reads_is_replaced(zygote: Zygote) -> None:
    await run(zygote, "report", {})
    first = zygote.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    task = asyncio.create_task(run(zygote, "report", {}))
    await asked(zygote)
    os.kill(first, signal.SIGKILL)
    assert (await task)["ppid"] == zygote.pid != first


async def test_a_zygote_that_dies_at_any_moment_has_forked_or_is_replaced(zygote: Zygote) -> None:
    for _ in range(30):
        await run(zygote, "report", {})
        assert zygote.pid is not None
        asking = asyncio.create_task(zygote.fork("zygote_entries:leave", {"status": 0}))
        await asked(zygote)
        os.kill(zygote.pid, signal.SIGKILL)
        (result,) = await asyncio.gather(asking, return_exceptions=True)
        assert not isinstance(result, BaseException)
        await ended(result[1])


async def test_a_zygote_that_dies_while_it_rehearses_leaves_nothing(tmp_path: Path) -> None:
    points, scratch = tmp_path / "points", tmp_path / "scratch"
    points.mkdir()
    scratch.mkdir()
    (points / "shim.create.options").write_text(str(int(signal.SIGKILL)))
    env = {**os.environ, failpoints.VARIABLE: str(points), "TMPDIR": str(scratch)}
    zygote = Zygote(env=env)
    zygote.start()
    await until(lambda: zygote.pid is None)
    assert [path.name.rpartition(".")[0] for path in points.iterdir()] == ["shim.create.options"]
    await until(lambda: not list(scratch.iterdir()))
    zygote.start()
    assert zygote.pid is not None
    await zygote.aclose()
    assert list(scratch.iterdir()) == []


@pytest.fixture
async def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Zygote]:
    """A zygote whose next fork fails, or whose child dies at once, where a file says so."""
    (tmp_path / "zygote_entries.py").write_text(textwrap.dedent(ENTRIES))
    (tmp_path / "zygote_faults.py").write_text(textwrap.dedent(FAULTS))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    zygote = Zygote(["zygote_entries", "zygote_faults"], env={"FAULTS": str(tmp_path)})
    yield zygote
    await zygote.aclose()


FAULTS = """
    import errno, os

    fork = os.fork

    def faulty():
        if os.path.exists(os.environ["FAULTS"] + "/refuse"):
            raise OSError(errno.EAGAIN, "no")
        pid = fork()
        if pid == 0 and os.path.exists(os.environ["FAULTS"] + "/die"):
            os._exit(9)
        return pid

    os.fork = faulty
"""


async def test_a_fork_that_fails_is_an_error(faulty: Zygote) -> None:
    Path("refuse").touch()
    with pytest.raises(BlockingIOError, match="zygote"):
        await faulty.fork("zygote_entries:leave", {"status": 0})
    Path("refuse").unlink()
    first = faulty.pid
    assert (await run(faulty, "report", {}))["ppid"] == faulty.pid == first


async def test_a_child_that_dies_before_it_is_anything_is_none(faulty: Zygote) -> None:
    Path("die").touch()
    with pytest.raises(ZygoteLost):
        await faulty.fork("zygote_entries:leave", {"status": 0})
    Path("die").unlink()
    assert (await run(faulty, "report", {}))["ppid"] == faulty.pid


async def test_a_zygote_that_cannot_start_is_an_error(zygote: Zygote, monkeypatch: Any) -> None:
    monkeypatch.setattr("cradled.zygote.client._BOOT", "raise SystemExit(1)")
    with pytest.raises(ZygoteLost, match="does not live"):
        await zygote.fork("zygote_entries:leave", {"status": 0})


async def test_a_cancelled_fork_leaves_no_child(zygote: Zygote) -> None:
    await run(zygote, "report", {})
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGSTOP)
    ours, theirs = socket.socketpair()
    with theirs:
        task = asyncio.create_task(zygote.fork("zygote_entries:wait", {}, [theirs.fileno()] * 2))
        await asked(zygote)
        task.cancel()
        os.kill(zygote.pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await task
    with ours:  # the end comes when the child is gone
        assert await asyncio.to_thread(lambda: ours.makefile("rb").read()) in (b"", b"here")


async def test_limits(zygote: Zygote) -> None:
    with pytest.raises(ValueError, match="over the limit"):
        await zygote.fork("x:y", {"text": "x" * protocol.MAX_MESSAGE})
    with pytest.raises(ValueError, match="over the limit"):
        await zygote.fork("x:y", {}, [0] * (MAX_FDS + 1))
    with pytest.raises(ValueError, match="unmarshallable"):
        await zygote.fork("x:y", {"object": object()})
    assert zygote.pid is None
