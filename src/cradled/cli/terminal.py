"""Async. This terminal (or pipe) joined to a process in a container."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty as tty_modes
from collections.abc import Iterator

from cradled.client import Process
from cradled.errors import Error, NotFound

_CHUNK = 1 << 16
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PATIENCE = 3  # interrupts; a container's first process may ignore them for ever
_LAST_OUTPUT = 5.0  # seconds for output that is still on its way after the exit


async def follow(process: Process, *, stdin: bool, tty: bool) -> int:
    """Carry input, output, signals and window sizes until the process exits; its status.

    With ``tty`` and ``stdin`` this terminal is raw meanwhile: what is typed is the process'.
    """
    outputs = [
        asyncio.ensure_future(_copy_out(reader, fd))
        for reader, fd in ((process.stdout, 1), (process.stderr, 2))
        if reader is not None
    ]
    feed = asyncio.ensure_future(_copy_in(process)) if stdin else None
    raw = _raw_terminal() if tty and stdin else contextlib.nullcontext()
    signals = _window_sizes(process) if tty else _forwarded_signals(process)
    try:
        with raw, signals:
            end = await process.wait()
            if outputs:
                await asyncio.wait(outputs, timeout=_LAST_OUTPUT)
        return end.status
    finally:
        tasks = [task for task in (feed, *outputs) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy_out(reader: asyncio.StreamReader, fd: int) -> None:
    """Write what the process writes; when nobody takes it any more, go on reading."""
    broken = False
    while data := await reader.read(_CHUNK):
        view = memoryview(data)
        while view and not broken:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # somebody made the terminal non-blocking
                await _ready(fd, write=True)
            except OSError:
                broken = True


async def _copy_in(process: Process) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, Error):
        while True:
            await _ready(0)
            try:
                data = os.read(0, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # closed, or a terminal that went away
                data = b""
            if not data or process.stdin is None:
                await process.close_stdin()
                return
            process.stdin.write(data)
            await process.stdin.drain()


async def _ready(fd: int, *, write: bool = False) -> None:
    """Until a descriptor can be used without blocking; files always can."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add = loop.add_writer if write else loop.add_reader
    remove = loop.remove_writer if write else loop.remove_reader

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        add(fd, wake)
    except OSError:  # epoll takes no regular files, and nothing that is closed
        return
    try:
        await ready
    finally:
        remove(fd)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty_modes.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _window_sizes(process: Process) -> Iterator[None]:
    tasks: set[asyncio.Task[None]] = set()

    async def tell() -> None:
        with contextlib.suppress(OSError, Error):  # no terminal, or exited meanwhile
            columns, lines = os.get_terminal_size(0)
            await process.resize(columns, lines)

    with _handlers({signal.SIGWINCH: lambda: _spawn(tasks, tell())}):
        _spawn(tasks, tell())
        yield


@contextlib.contextmanager
def _forwarded_signals(process: Process) -> Iterator[None]:
    tasks: set[asyncio.Task[None]] = set()
    interrupts = 0

    def forward(number: signal.Signals) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        _spawn(tasks, kill(signal.SIGKILL if interrupts >= _PATIENCE else number))

    async def kill(number: int) -> None:
        with contextlib.suppress(NotFound):  # it has exited by itself
            await process.kill(number)

    with _handlers({number: lambda n=number: forward(n) for number in _FORWARDED}):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """For what must not be broken off: who presses keys now wants an end, and it is near."""
    with _handlers({number: lambda: None for number in _FORWARDED}):
        yield


def _spawn(tasks: set[asyncio.Task[None]], coroutine: object) -> None:
    task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@contextlib.contextmanager
def _handlers(handlers: dict[signal.Signals, object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
