"""Async. What the daemon is doing: tasks, spans, locks, calls in threads, each with its age.

For a report by signal or through the debug socket. A task that serves a call may be a little older
than the call, whose age is that of its span.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from cradled import spans
from cradled.aio import births, keyed_lock, threads

_INNERMOST = 64
"""Frames that are told of one stack."""

_BY_HAND = "_Host._steps"
"""Of ``rpc.eager``: what runs a coroutine without awaiting it."""


def report() -> str:
    """The whole report. To be called in the loop's thread."""
    parts = (
        ("tasks", _tasks()),
        ("spans under way", _spans()),
        ("locks held", locks()),
        ("calls in thread pools", operations()),
        ("threads", threads_told()),
    )
    return "\n".join(f"=== {title}\n{''.join(lines)}" for title, lines in parts)


def write(pid: int) -> tuple[str, str]:
    """Make a report and write it to ``cradled.<pid>.stacks.log`` in the directory for temporary
    files; the report and the path, or what went wrong."""
    text = report()
    path = os.path.join(tempfile.gettempdir(), f"cradled.{pid}.stacks.log")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        return text, f"cannot write {path}: {error.strerror}"
    return text, path


def _tasks() -> Iterator[str]:
    """The oldest first: it is more likely the one that is stuck."""
    ages = {task: births.age(task) for task in asyncio.all_tasks()}
    for task, age in sorted(ages.items(), key=lambda item: -(item[1] or 0)):
        told = "unknown" if age is None else f"{age:.3f}s"
        yield f"task {task.get_name()} [{_state(task)}, age {told}]:\n"
        yield from _frames(awaited(task.get_coro()))
        yield "\n"


def _state(task: asyncio.Task[Any]) -> str:
    if task is asyncio.current_task():
        return "running"
    return "being cancelled" if task.cancelling() else "waiting"


def awaited(coro: Any) -> list[tuple[str, int, str]]:
    """File, line and function of each coroutine in the chain that ``coro`` awaits, outermost
    first; an awaitable of another kind is the last, without file."""
    chain: list[tuple[str, int, str]] = []
    while coro is not None and len(chain) < _INNERMOST:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(coro, f"{kind}_frame")), "")
        if not kind:
            if type(coro).__name__ != "FutureIter":  # a bare future says nothing more
                chain.append(("", 0, repr(coro)))
            break
        frame = getattr(coro, f"{kind}_frame")
        following = getattr(coro, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
        if frame is not None:
            code = frame.f_code
            chain.append((code.co_filename, frame.f_lineno, code.co_qualname))
            if code.co_qualname == _BY_HAND and following is None:
                following = frame.f_locals.get("coro")
        coro = following
    return chain


def _frames(chain: list[tuple[str, int, str]]) -> Iterator[str]:
    for file, line, name in reversed(chain):
        yield f"    {name} ({file}:{line})\n" if file else f"    on {name}\n"


def _spans() -> Iterator[str]:
    for name, age in spans.under_way():
        yield f"{name} [age {age:.3f}s]\n"


def locks() -> Iterator[str]:
    """Lines that tell who holds which lock and who waits for it."""
    for held in keyed_lock.held():
        waits = ", ".join(f"{wait:.3f}s" for wait in held.waiting)
        waiting = f", waited for since {waits}" if waits else ""
        yield f"{held.lock} {held.key} by {held.holder} [for {held.age:.3f}s{waiting}]\n"


def operations() -> Iterator[str]:
    """Lines that tell what is done in thread pools."""
    for one in sorted(threads.operations(), key=lambda one: -one.age):
        cause = f" for {one.cause}" if one.cause else ""
        yield f"{one.pool}: {one.name}{cause} [age {one.age:.3f}s]\n"


def threads_told() -> Iterator[str]:
    """Lines that tell where each thread is."""
    frames: dict[int, FrameType] = sys._current_frames()
    for thread in threading.enumerate():
        told = _thread_age(thread.native_id or 0)
        yield f"thread {thread.name} [native id {thread.native_id}, age {told}]:\n"
        frame = frames.get(thread.ident or 0)
        if frame is not None:
            yield from reversed(traceback.format_stack(frame, _INNERMOST))
        yield "\n"


def _thread_age(native_id: int) -> str:
    try:
        with open(f"/proc/self/task/{native_id}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):  # it has just ended
        return "unknown"
    began = ticks / os.sysconf("SC_CLK_TCK")
    return f"{time.clock_gettime(time.CLOCK_BOOTTIME) - began:.2f}s"


def counts() -> dict[str, int]:
    """How many of each there are."""
    found: dict[str, Callable[[], int]] = {
        "tasks": lambda: len(asyncio.all_tasks()),
        "spans": lambda: len(spans.under_way()),
        "locks": lambda: len(keyed_lock.held()),
        "operations": lambda: len(threads.operations()),
        "threads": threading.active_count,
    }
    return {name: count() for name, count in found.items()}
