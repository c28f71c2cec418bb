import asyncio
import os
from pathlib import Path

import pytest

from cradled.aio import threads
from cradled.client.stdio import Pipes, Streams


@pytest.fixture(autouse=True)
def _threads() -> None:
    yield  # type: ignore[misc]
    threads.close()


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
    guest = await Pipes.attach(owner.stdio)
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


async def test_input_without_a_shim_fails(tmp_path: Path) -> None:
    pipes = await Pipes.make(tmp_path, "c", Streams(stdin=True))
    with pytest.raises(OSError, match="No such device"):
        await pipes.connect_stdin()
    await pipes.aclose()
