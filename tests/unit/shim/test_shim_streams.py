"""The streams of a process without a process, where the order of events is all that counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from cradled.linux.coroutines import Future, Loop
from cradled.shim import log
from cradled.shim.messages import CreateTaskRequest
from cradled.shim.stdio import Streams


class Watch:
    """Who would reap the logging program."""

    def __init__(self) -> None:
        self.ended = Future()
        self.pid = 0

    def watch(self, pid: int) -> Future:
        self.pid = pid
        return self.ended


class StrictLoop(Loop):
    """Knows who waits on numbers that are no descriptor, or another's by now."""

    def __init__(self) -> None:
        super().__init__(log.trace)
        self.mistaken: list[int] = []

    def readable(self, fd: int) -> Future:
        if not os.path.exists(f"/proc/self/fd/{fd}"):
            self.mistaken.append(fd)
        return super().readable(fd)


def test_streams_closed_when_their_logger_has_just_ended(tmp_path: Path) -> None:
    """What was going to be read in its place is not waited for any more."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    watch, loop = Watch(), StrictLoop()

    async def main() -> None:
        request = CreateTaskRequest(stdout=f"binary://{program}")
        streams = Streams(loop, cast("Any", watch), request, (0, 0))
        await streams.open({})
        watch.ended.set()
        await streams.close()
        for _ in range(5):
            await loop.sleep(0)
        loop.stop()

    loop.spawn(main())
    loop.run()
    os.waitpid(watch.pid, 0)
    assert not loop.mistaken
