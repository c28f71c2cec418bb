import asyncio
import os
from pathlib import Path

import pytest

from cradled.aio import threads
from cradled.client.stdio import Pipes, Streams, remove
from cradled.core.tasks import Exit, Stdio
from cradled.errors import FailedPrecondition


@pytest.fixture(autouse=True)
def _threads() -> None:
    yield  # type: ignore[misc]
    threads.close()


async def never() -> Exit:
    raise AssertionError("nobody waits for the end where the pipe tells it")


def shim_end(path: str) -> int:
    """As the shim opens an output: both ways, so that it never lacks a reader."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


async def test_outputs_are_silent_then_end_with_the_shim(tmp_path: Path) -> None:
    pipes = await Pipes.make(tmp_path / "fifos", "c", Streams())
    assert pipes.stdout is not None
    assert pipes.stderr is not None
    assert pipes.stdio.stdin == ""
    assert Path(pipes.stdio.stdout).is_fifo()
    read = asyncio.ensure_future(pipes.stdout.read())
    done, _ = await asyncio.wait((read,), timeout=0.05)
    assert not done  # no writer yet is no end
    out, err = shim_end(pipes.stdio.stdout), shim_end(pipes.stdio.stderr)
    os.write(out, b"hello")
    os.close(out)
    os.close(err)
    assert await read == b"hello"
    assert await pipes.stderr.read() == b""
    await pipes.aclose()
    await pipes.aclose()
    assert list((tmp_path / "fifos").iterdir()) == []


async def test_more_than_a_pipe_holds(tmp_path: Path) -> None:
    pipes = await Pipes.make(tmp_path, "c", Streams(stdin=True, stderr=False))
    stdin = os.open(pipes.stdio.stdin, os.O_RDONLY | os.O_NONBLOCK)
    await pipes.connect_stdin()
    assert pipes.stdin is not None
    data = os.urandom(1 << 20)
    pipes.stdin.write(data)
    drained = asyncio.ensure_future(pipes.stdin.drain())
    received = b""
    while len(received) < len(data):
        try:
            received += os.read(stdin, 1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0)
    await drained
    assert received == data
    pipes.stdin.close()
    await pipes.stdin.wait_closed()
    assert os.read(stdin, 1) == b""
    os.close(stdin)
    await pipes.aclose()


async def test_a_terminal_has_one_output(tmp_path: Path) -> None:
    pipes = await Pipes.make(tmp_path, "c", Streams(terminal=True))
    assert (pipes.stdio.stderr, pipes.stderr, pipes.stdio.terminal) == ("", None, True)
    await pipes.aclose()


async def test_attach_uses_the_files_of_another(tmp_path: Path) -> None:
    owner = await Pipes.make(tmp_path, "c", Streams(stderr=False))
    shim = shim_end(owner.stdio.stdout)
    guest = await Pipes.attach(owner.stdio, never)
    assert guest.stdout is not None
    os.write(shim, b"x")
    reads = [asyncio.ensure_future(p.stdout.read(1)) for p in (owner, guest) if p.stdout]
    done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [b"x"]
    os.close(shim)
    await asyncio.wait(reads)
    await guest.aclose()
    assert Path(owner.stdio.stdout).is_fifo()
    await owner.aclose()


async def test_attach_reads_a_log_from_now_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before")
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pipes = await Pipes.attach(Stdio(stdout=log.as_uri(), stderr=log.as_uri()), lambda: ended)
    assert pipes.stdout is not None
    assert pipes.stderr is None
    data = os.urandom(1 << 20)
    log.write_bytes(b"before" + data)
    assert await pipes.stdout.readexactly(len(data)) == data
    log.write_bytes(b"before" + data + b"last")
    ended.set_result(None)
    assert await pipes.stdout.read() == b"last"
    await pipes.leave()


@pytest.mark.parametrize("stdout", ["", "binary:///logger", "/dev/null"])
async def test_nobody_can_read_the_output(stdout: str) -> None:
    with pytest.raises(FailedPrecondition, match="no pipe or file"):
        await Pipes.attach(Stdio(stdout=stdout), never)


async def test_who_leaves_leaves_the_files_to_others(tmp_path: Path) -> None:
    pipes = await Pipes.make(tmp_path, "c", Streams(stdin=True))
    await pipes.leave()
    assert Path(pipes.stdio.stdout).is_fifo()
    remove(pipes.stdio, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_fifos_of_our_directory_are_removed(tmp_path: Path) -> None:
    fifos, other = tmp_path / "fifos", tmp_path / "other"
    (fifos / "a").mkdir(parents=True)
    other.mkdir()
    (fifos / "a" / "file").touch()
    os.mkfifo(other / "pipe")
    remove(Stdio(str(fifos / "a" / "file"), str(other / "pipe"), str(fifos / "no" / "pipe")), fifos)
    assert (fifos / "a" / "file").exists()
    assert (other / "pipe").exists()


async def test_input_without_a_shim_fails(tmp_path: Path) -> None:
    pipes = await Pipes.make(tmp_path, "c", Streams(stdin=True))
    with pytest.raises(OSError, match="No such device"):
        await pipes.connect_stdin()
    await pipes.aclose()
