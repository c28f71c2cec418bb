"""The shim's event loop on real descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from cradled.linux.coroutines import Closed, Future, Lock, Loop
from cradled.shim import log


def run(main: Callable[[Loop], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine to its end on a loop of its own."""
    loop = Loop(log.trace)
    task = loop.spawn(main(loop))
    task.then(lambda _: loop.stop())
    loop.run()
    return task


def result(main: Callable[[Loop], Coroutine[Any, Any, Any]]) -> Any:
    found: list[Any] = []

    async def outer(loop: Loop) -> None:
        found.append(await main(loop))

    run(outer)
    return found[0]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    for sock in (ours, theirs):
        if sock.fileno() >= 0:
            sock.close()


def test_readable(pair: tuple[socket.socket, socket.socket]) -> None:
    async def main(loop: Loop) -> bytes:
        loop.spawn(later(loop))
        await loop.readable(pair[0].fileno())
        first = pair[0].recv(10)
        await loop.readable(pair[0].fileno())
        return first + pair[0].recv(10)

    async def later(loop: Loop) -> None:
        pair[1].send(b"one")
        await loop.sleep(0)
        pair[1].send(b"two")

    assert result(main) == b"onetwo"


def test_end_of_file_is_readable(pair: tuple[socket.socket, socket.socket]) -> None:
    async def main(loop: Loop) -> bytes:
        pair[1].close()
        await loop.readable(pair[0].fileno())
        return pair[0].recv(10)

    assert result(main) == b""


def test_both_directions_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    data = b"x" * 1_000_000

    async def main(loop: Loop) -> tuple[bytes, bool]:
        writing = loop.spawn(loop.write(ours.fileno(), data))
        reading = loop.readable(ours.fileno())
        assert not await loop.within(writing, 0.01)
        theirs.send(b"hello")
        await reading
        got = b""
        theirs.setblocking(False)
        while len(got) < len(data):
            await loop.readable(theirs.fileno())
            got += theirs.recv(100_000)
        await writing
        return ours.recv(10), got == data

    assert result(main) == (b"hello", True)


def test_a_regular_file_never_blocks(tmp_path: Any) -> None:
    with open(tmp_path / "f", "wb") as file:

        async def main(loop: Loop) -> None:
            await loop.writable(file.fileno())
            await loop.write(file.fileno(), b"data")

        run(main)
    assert (tmp_path / "f").read_bytes() == b"data"


def test_closing_wakes_who_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    async def main(loop: Loop) -> str:
        task = loop.spawn(waiter(loop))
        await loop.sleep(0)
        loop.close(pair[0].detach())
        return await task

    async def waiter(loop: Loop) -> str:
        try:
            await loop.readable(pair[0].fileno())
        except Closed:
            return "closed"
        return "readable"

    assert result(main) == "closed"


def test_a_number_that_is_used_again() -> None:
    async def main(loop: Loop) -> bytes:
        for _ in range(3):
            reader, writer = os.pipe()
            os.write(writer, b"x")
            await loop.readable(reader)
            data = os.read(reader, 10)
            loop.close(reader)
            loop.close(writer)
        return data

    assert result(main) == b"x"


def test_sleepers_wake_in_order() -> None:
    order: list[int] = []

    async def sleeper(loop: Loop, number: int) -> None:
        await loop.sleep(number / 100)
        order.append(number)

    async def main(loop: Loop) -> None:
        tasks = [loop.spawn(sleeper(loop, number)) for number in (3, 1, 2)]
        for task in tasks:
            await task

    run(main)
    assert order == [1, 2, 3]


def test_within() -> None:
    async def main(loop: Loop) -> list[bool]:
        never, soon, done = Future(), loop.sleep(0.001), Future()
        done.set()
        return [
            await loop.within(never, 0.001),
            await loop.within(soon, 100),
            await loop.within(done, 0),
        ]

    assert result(main) == [False, True, True]


def test_a_future_is_delivered_once_to_all() -> None:
    async def reader(future: Future) -> Any:
        return await future

    async def main(loop: Loop) -> list[Any]:
        future = Future()
        tasks = [loop.spawn(reader(future)) for _ in range(3)]
        await loop.sleep(0)
        future.set("first")
        future.set("second")
        future.fail(ValueError())
        return [await task for task in tasks]

    assert result(main) == ["first"] * 3


def test_an_exception_goes_to_who_awaits(capfd: pytest.CaptureFixture[str]) -> None:
    async def failing() -> None:
        raise ValueError("mine")

    async def main(loop: Loop) -> str:
        try:
            await loop.spawn(failing())
        except ValueError as error:
            return str(error)
        return ""

    assert result(main) == "mine"
    assert capfd.readouterr().err == ""


def test_an_exception_nobody_awaits_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    async def failing() -> None:
        raise ValueError("nobody's")

    async def main(loop: Loop) -> None:
        loop.spawn(failing())
        await loop.sleep(0)

    run(main)
    assert "ValueError: nobody's" in capfd.readouterr().err


def test_a_lock_is_held_in_order() -> None:
    order: list[str] = []

    async def worker(loop: Loop, lock: Lock, name: str) -> None:
        async with lock:
            order.append(name)
            await loop.sleep(0)
            order.append(name)

    async def main(loop: Loop) -> None:
        lock = Lock()
        tasks = [loop.spawn(worker(loop, lock, name)) for name in "abc"]
        for task in tasks:
            await task

    run(main)
    assert "".join(order) == "aabbcc"


def test_a_descriptor_closed_between_waking_and_running(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Its number may be another's by then: who waited must not go on to use it."""

    async def main(loop: Loop) -> str:
        fd = os.dup(pair[0].fileno())
        woken = loop.readable(fd)
        woken.then(lambda _: loop.close(fd))
        pair[1].send(b"x")
        try:
            await woken
        except Closed:
            return "closed"
        return "woken"

    assert result(main) == "closed"


def test_a_failed_wait_is_not_remembered(pair: tuple[socket.socket, socket.socket]) -> None:
    async def main(loop: Loop) -> bytes:
        fd = os.dup(pair[0].fileno())
        os.close(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            loop.readable(fd)
        os.dup2(pair[0].fileno(), fd)  # another descriptor of the same number
        pair[1].send(b"x")
        await loop.readable(fd)
        data = os.read(fd, 10)
        loop.close(fd)
        return data

    assert result(main) == b"x"
