"""Async. Stream processors: programs of the administrator's that turn a layer of a media type of
their own into one of another, such as an encrypted one into one that is not.

A program gets the blob as its standard input and writes the result to its standard output; its
file descriptor 3 has the payload that the client sent along for it, a serialised ``Any``, if there
is one; ``STREAM_PROCESSOR_MEDIATYPE`` names the type that comes in. What it writes is kept in an
unnamed file, because a layer may have to be read twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

from cradled.aio import threads
from cradled.convert.values import any_to_proto
from cradled.core.values import AnyValue
from cradled.differs import mediatypes
from cradled.errors import Error, NotFound
from cradled.linux.fs import write_all
from cradled.linux.spawn import spawn

_MOST_STDERR = 64 << 10
_PAYLOAD_FD = 3
_NOT_IN_PATH = "executable file not found in $PATH"


class Processor(NamedTuple):
    """As configured. ``id`` names its payload; ``env`` has ``KEY=value`` texts."""

    id: str
    accepts: tuple[str, ...]
    returns: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


class Chain(NamedTuple):
    """The processors that a layer goes through, and whether a compressed tar may come out."""

    processors: tuple[Processor, ...]
    compressed: bool

    async def run(
        self, media_type: str, fd: int, payloads: Mapping[str, AnyValue], stack: ExitStack
    ) -> int:
        """Have them work on the file ``fd``; returns one with the result, closed by ``stack``.

        Raises Error with what a program that failed wrote to its standard error.
        """
        for processor in self.processors:
            sink = temporary(stack)
            await _run(processor, media_type, (fd, sink), payloads.get(processor.id))
            media_type, fd = processor.returns, sink
        return fd


def plan(processors: Iterable[Processor], media_type: str) -> Chain:
    """How to make a tar of a layer: what is configured goes before what is built in.

    Raises NotFound when nothing leads to one.
    """
    left, chain, current = list(processors), [], media_type
    while current != mediatypes.LAYER:
        taken = next((item for item in left if current in item.accepts), None)
        if taken is None:
            break
        left.remove(taken)
        chain.append(taken)
        current = taken.returns
    compressed = mediatypes.is_compressed(current)
    if compressed is None:
        raise NotFound(f"{_no_processor(media_type)}: no processor for media-type")
    return Chain(tuple(chain), compressed)


def _no_processor(media_type: str) -> str:
    return f"failed to get stream processor for {media_type}"


async def _run(
    processor: Processor, media_type: str, streams: tuple[int, int], payload: AnyValue | None
) -> None:
    with ExitStack() as stack:
        stderr = temporary(stack)
        files = [*streams, stderr]
        if payload is not None:
            files.append(temporary(stack))
            write_all(files[_PAYLOAD_FD], any_to_proto(payload).SerializeToString())
            os.lseek(files[_PAYLOAD_FD], 0, os.SEEK_SET)
        os.lseek(streams[0], 0, os.SEEK_SET)
        status = await _spawned(processor, media_type, files)
        if status:
            text = os.pread(stderr, _MOST_STDERR, 0).decode(errors="replace").strip()
            raise Error(text or f"{processor.path}: {_how_it_ended(status)}")


async def _spawned(processor: Processor, media_type: str, files: list[int]) -> int:
    """Run the program to its end; returns its exit status, negative for a signal."""
    started: list[int] = []  # what runs, even if this is cancelled meanwhile
    try:
        await threads.run("fs", _spawn, started, processor, media_type, files)
        await _exited(started[0])
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and "/" not in processor.path
        reason = _NOT_IN_PATH if missing else os.strerror(error.errno or 0).lower()
        raise Error(f'{_no_processor(media_type)}: exec: "{processor.path}": {reason}') from None
    finally:
        status = await _reaped(started[0]) if started else 0
    return status


async def _exited(pid: int) -> None:
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _reaped(pid: int) -> int:
    """Take the exit status of a child, which is killed if it still runs; whatever cancels us."""
    os.kill(pid, signal.SIGKILL)  # of no effect on one that has ended
    while True:
        with suppress(asyncio.CancelledError):
            await _exited(pid)
            break
    return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])  # noqa: ASYNC222


def _spawn(started: list[int], processor: Processor, media_type: str, files: list[int]) -> None:
    env = os.environ | dict(item.partition("=")[::2] for item in processor.env)
    env["STREAM_PROCESSOR_MEDIATYPE"] = media_type
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(files)) for fd in files]
    try:
        started.append(spawn([processor.path, *processor.args], env, copies))
    finally:
        for fd in copies:
            os.close(fd)


def temporary(stack: ExitStack) -> int:
    """An unnamed file, until ``stack`` closes it."""
    return stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()


def _how_it_ended(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"signal {-status}"
