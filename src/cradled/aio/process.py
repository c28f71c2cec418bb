"""Async. Programs run to their end, watched by pidfd: no SIGCHLD, no fork of this process.

A program starts with default signals, in its own process group, with no descriptor but the three
standard ones. (``subprocess`` starts it by vfork, in a thread; unlike ``posix_spawn`` that can set
the working directory, and leaves no signal ignored that the C library keeps to itself.)
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from cradled.aio import threads
from cradled.linux.limits import restore_files

MAX_OUTPUT = 4 << 20


class Finished(NamedTuple):
    """How a program ended: its exit status (negative: the signal), and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str = "/",
    stdin: bytes = b"",
    combined: bool = False,
    timeout: float | None = None,
) -> Finished:
    """Run a program; ``combined`` has its standard error in ``stdout``, in the order written.

    It has ended when its process has, even if descendants hold its output open. Output beyond
    ``MAX_OUTPUT`` bytes a stream is dropped. Raises OSError when it cannot be started, TimeoutError
    after ``timeout`` seconds; then, and when cancelled, its group is killed, and it is reaped.
    """
    process = await _Process.start(argv, env, cwd, stdin, combined)
    try:
        async with asyncio.timeout(timeout):
            await process.ended()
    finally:
        await process.aclose()
    return Finished(process.status, bytes(process.stdout.data), bytes(process.stderr.data))


class _Output:
    """The reading end of a pipe, collected as it comes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self.data = bytearray()
        self._loop = loop
        self._fd = fd
        os.set_blocking(fd, False)
        loop.add_reader(fd, self.read)

    def read(self) -> None:
        """Take what is there now."""
        while self._fd >= 0:
            try:
                chunk = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                self.close()
            elif len(self.data) < MAX_OUTPUT:
                self.data += chunk

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class _Process:
    def __init__(self, popen: subprocess.Popen[bytes], stdout: int, stderr: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._exited = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._exited.set)
        self.stdout = _Output(self._loop, stdout)
        self.stderr = _Output(self._loop, stderr)

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], cwd: str, stdin: bytes, combined: bool
    ) -> _Process:
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        started: list[subprocess.Popen[bytes]] = []  # what runs, even if this is cancelled
        try:
            streams = (writers[0], writers[0 if combined else 1])
            await threads.run("fs", _popen, started, argv, env, cwd, stdin, streams)
        except BaseException:
            for popen in started:
                popen.kill()
                popen.wait()
            for fd in readers:
                os.close(fd)
            raise
        finally:
            for fd in writers:
                os.close(fd)
        return cls(started[0], *readers)

    @property
    def status(self) -> int:
        return self._popen.wait()

    async def ended(self) -> None:
        await self._exited.wait()

    async def aclose(self) -> None:
        """Kill it if it still runs, reap it, take the rest of its output."""
        if not self._exited.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)  # nobody else can reap it
        while not self._exited.is_set():
            with suppress(asyncio.CancelledError):  # a killed process ends at once
                await self._exited.wait()
        self._popen.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for output in (self.stdout, self.stderr):
            output.read()
            output.close()


def _popen(
    started: list[subprocess.Popen[bytes]],
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    stdin: bytes,
    streams: tuple[int, int],
) -> None:
    with open(os.memfd_create("stdin", os.MFD_CLOEXEC), "w+b", buffering=0) as source:
        source.write(stdin)
        source.seek(0)
        started.append(
            subprocess.Popen(
                argv,
                stdin=source,
                stdout=streams[0],
                stderr=streams[1],
                cwd=cwd,
                env=env,
                process_group=0,
            )
        )
    restore_files(started[-1].pid)
