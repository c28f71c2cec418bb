"""A relay between an HTTP/2 client and a server that tells which frames went through."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

PING, GOAWAY = 6, 7
ACK = 1
_PREFACE = 24
_HEAD = 9


class Tap:
    """Listens at ``path`` and connects to ``target``.

    Frames are counted by (from the client?, type, flags).
    """

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        self._target = target
        self._frames: Counter[tuple[bool, int, int]] = Counter()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Tap:
        self._server = await asyncio.start_unix_server(self._relay, self._path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=5 if exc[0] else 20)
            for task in late:
                task.cancel()

    async def seen(self, count: int, *, client: bool, kind: int, flags: int) -> None:
        """Wait until so many of these frames went through."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self._frames[client, kind, flags] >= count)

    def count(self, *, client: bool, kind: int, flags: int) -> int:
        return self._frames[client, kind, flags]

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        target = await asyncio.open_unix_connection(self._target)
        await asyncio.gather(
            self._pass_on(reader, target[1], client=True, skip=_PREFACE),
            self._pass_on(target[0], writer, client=False, skip=0),
        )
        self._tasks.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool, skip: int
    ) -> None:
        """Pass bytes on as they come; ``skip`` of them belong to no frame."""
        head = b""
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
                while data:
                    if skip:
                        skip, data = max(0, skip - len(data)), data[skip:]
                        continue
                    missing = _HEAD - len(head)
                    head, data = head + data[:missing], data[missing:]
                    if len(head) == _HEAD:
                        await self._note(client, head[3], head[4])
                        skip, head = int.from_bytes(head[:3], "big"), b""
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _note(self, client: bool, kind: int, flags: int) -> None:
        async with self._changed:
            self._frames[client, kind, flags] += 1
            self._changed.notify_all()
