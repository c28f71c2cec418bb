"""What can go wrong with a shim at one of its calls, and a wire that it goes wrong on."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from cradled.errors import PermissionDenied
from harness.fake_shim import FakeShim

GARBAGE = b"\xff\xfe\xfd" * 30
FAULTS = ("refuses", "hangs", "dies", "lies", "stops half way", "babbles", "floods")
FLOOD = 256 << 10


class Wire:
    """A socket in front of a shim's, between it and the daemon."""

    def __init__(self, path: str, target: str) -> None:
        self.path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._down: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._room: int | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    def say(self, data: bytes) -> None:
        """Send bytes to the daemon that the shim never sent."""
        for writer in self._down:
            writer.write(data)

    def cut_after(self, size: int) -> None:
        """Let so many more bytes come from the shim, and hang up."""
        self._room = size

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in self._down:
            writer.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _accept(self, reader: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        shim, up = await asyncio.open_unix_connection(self._target)
        self._down.append(down)
        for work in (self._pass_up(reader, up), self._pass_down(shim, down)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def _pass_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._room is not None:
                    writer.write(data[: self._room])
                    break
                writer.write(data)
                await writer.drain()
        writer.close()


def script(fault: str, shim: FakeShim, wire: Wire) -> Callable[[], Awaitable[Any]]:
    """What has a shim suffer a fault at a call (``FakeShim.script``)."""

    async def refuses() -> None:
        raise PermissionDenied("not today")

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def dies() -> None:
        asyncio.get_running_loop().create_task(shim.die())
        await asyncio.Event().wait()

    async def lies() -> bytes:
        return GARBAGE

    async def stops_half_way() -> None:
        wire.cut_after(5)

    async def babbles() -> None:
        wire.say(GARBAGE)
        await asyncio.Event().wait()

    async def floods() -> None:
        wire.say(_stray(shim) * (FLOOD // len(_stray(shim))))

    return {
        "refuses": refuses,
        "hangs": hangs,
        "dies": dies,
        "lies": lies,
        "stops half way": stops_half_way,
        "babbles": babbles,
        "floods": floods,
    }[fault]


def _stray(shim: FakeShim) -> bytes:
    """A frame that belongs to nothing: an answer nobody asked for, an acknowledged ping."""
    if shim.protocol == "grpc":
        return bytes([0, 0, 8, 6, 1, 0, 0, 0, 0]) + bytes(8)
    return bytes([0, 0, 0, 4, 0, 15, 66, 63, 2, 0]) + bytes(4)
