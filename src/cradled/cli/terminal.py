"""Async. This terminal (or pipe) joined to a process in a container."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty as tty_modes
from collections.abc import Iterator

from cradled.client import Exit, Process
from cradled.errors import Error, NotFound

_CHUNK = 1 << 16
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PATIENCE = 3  # interrupts; a container's first process may ignore them for ever
_KEYS = b"\x10\x11"  # ctrl-p ctrl-q
_LAST_OUTPUT = 5.0  # seconds for output that is still on its way after the exit


class Detached(Exception):
    """Who sits at the terminal has pressed the keys to leave; the process goes on."""


class Detaching:
    """Typed bytes on their way to a process, ctrl-p ctrl-q taken out of them."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the keys were pressed. A ctrl-p waits for what follows."""
        data = self._held + data
        before, keys, _ = data.partition(_KEYS)
        self._held = b"" if keys or not data.endswith(_KEYS[:1]) else _KEYS[:1]
        return before.removesuffix(self._held), bool(keys)


async def follow(
    process: Process, *, stdin: bool, tty: bool, detachable: bool = False, guest: bool = False
) -> int:
    """Carry input, output, signals and window sizes until the process exits; its status.

    With ``tty`` and ``stdin`` this terminal is raw meanwhile: what is typed is the process', but
    for the keys that end this if it is ``detachable``. A ``guest`` leaves the process its input
    when there is no more here, and the signals to who started it. Raises Detached.
    """
    outputs = [
        asyncio.ensure_future(_copy_out(reader, fd))
        for reader, fd in ((process.stdout, 1), (process.stderr, 2))
        if reader is not None
    ]
    keys = Detaching() if tty and detachable else None
    feed = asyncio.ensure_future(_copy_in(process, keys, not guest)) if stdin else None
    end = asyncio.ensure_future(process.wait())
    raw = _raw_terminal() if tty and stdin else contextlib.nullcontext()
    try:
        with raw, _signals(process, tty=tty, guest=guest):
            await _first_of(end, feed)
            if outputs:
                await asyncio.wait(outputs, timeout=_LAST_OUTPUT)
        return end.result().status
    finally:
        tasks = [task for task in (end, feed, *outputs) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_of(end: asyncio.Future[Exit], feed: asyncio.Future[None] | None) -> None:
    """Wait for the end, or raise what the input raises before it."""
    if feed is not None:
        await asyncio.wait((end, feed), return_when=asyncio.FIRST_COMPLETED)
        if feed.done():
            feed.result()
    await end


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


async def _copy_in(process: Process, keys: Detaching | None, close: bool) -> None:
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
                if close:
                    await process.close_stdin()
                return
            leave = False
            if keys is not None:
                data, leave = keys.feed(data)
            process.stdin.write(data)
            await process.stdin.drain()
            if leave:
                raise Detached


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


def _signals(
    process: Process, *, tty: bool, guest: bool
) -> contextlib.AbstractContextManager[None]:
    if tty:
        return _window_sizes(process, redrawn=guest)
    return contextlib.nullcontext() if guest else _forwarded_signals(process)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty_modes.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _window_sizes(process: Process, *, redrawn: bool) -> Iterator[None]:
    """Tell the sizes; a change of size is what has a program draw its window again."""
    tasks: set[asyncio.Task[None]] = set()

    async def tell(more: int = 0) -> None:
        with contextlib.suppress(OSError, Error):  # no terminal, or exited meanwhile
            columns, lines = os.get_terminal_size(0)
            if more:
                await process.resize(columns + more, lines)
            await process.resize(columns, lines)

    with _handlers({signal.SIGWINCH: lambda: _spawn(tasks, tell())}):
        _spawn(tasks, tell(int(redrawn)))
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
