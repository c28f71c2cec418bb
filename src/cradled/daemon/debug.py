"""Async. What the debug socket tells: stacks, a sampled profile, objects, numbers; all as text.

The paths are those of Go's profiler, so that known tools and habits find something there; what is
below them is about Python and not in the profiler's format.

    /debug/pprof/                     what there is
    /debug/pprof/goroutine            tasks, spans, locks and threads with ages and stacks
    /debug/pprof/profile?seconds=30   collapsed stacks of all threads and how often each was seen
    /debug/pprof/heap                 living objects by type; tracemalloc's statistics if it is on
    /debug/pprof/block, mutex         locks held, how long calls waited for threads
    /debug/pprof/threadcreate         threads
    /debug/pprof/cmdline              the command line
    /debug/vars                       numbers, as JSON
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from types import FrameType

from cradled.aio import threads
from cradled.daemon import stacks
from cradled.daemon.http1 import Handler, HttpError, Request, Response
from cradled.version import SERVER_VERSION

PROFILE_SECONDS = 30.0
MOST_SECONDS = 300.0
SAMPLE_SECONDS = 0.01
_TYPES = 60
_LINES = 60


def routes() -> Mapping[str, Handler]:
    """Handlers by path, for ``http1.HttpServer``."""
    profiler = _Profiler()
    return {
        "/debug/pprof/": _index,
        "/debug/pprof/goroutine": _goroutine,
        "/debug/pprof/profile": profiler.answer,
        "/debug/pprof/heap": _heap,
        "/debug/pprof/allocs": _heap,
        "/debug/pprof/block": _block,
        "/debug/pprof/mutex": _block,
        "/debug/pprof/threadcreate": _threads,
        "/debug/pprof/cmdline": _cmdline,
        "/debug/vars": _vars,
    }


def _text(text: str) -> Response:
    return Response(text.encode(errors="backslashreplace"))


async def _index(request: Request) -> Response:
    if request.path != "/debug/pprof/":
        raise HttpError(HTTPStatus.NOT_FOUND)
    assert __doc__ is not None
    return _text(__doc__.partition("\n\n")[2].partition("\n\n")[2])


async def _goroutine(request: Request) -> Response:
    return _text(stacks.report())


async def _heap(request: Request) -> Response:
    """Takes a while, in the loop's thread: whoever asks wants to know."""
    seen: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one in gc.get_objects():
        name = f"{type(one).__module__}.{type(one).__qualname__}"
        seen[name] += 1
        sizes[name] += sys.getsizeof(one, 0)
    frozen = gc.get_freeze_count()
    lines = [f"{'objects':>9} {'bytes':>11} type (without the start's {frozen} objects)"]
    for name, size in sizes.most_common(_TYPES):
        lines.append(f"{seen[name]:>9} {size:>11} {name}")
    if tracemalloc.is_tracing():
        lines += ["", "by line, of tracemalloc:"]
        statistics = tracemalloc.take_snapshot().statistics("lineno")
        lines += [str(one) for one in statistics[:_LINES]]
    else:
        lines += ["", "PYTHONTRACEMALLOC=1 in the daemon's environment adds where memory is from"]
    return _text("\n".join(lines) + "\n")


async def _block(request: Request) -> Response:
    held, running = "".join(stacks.locks()), "".join(stacks.operations())
    lines = [f"locks held:\n{held}", f"calls in thread pools:\n{running}"]
    for name, load in threads.loads().items():
        waits = load.waits
        mean = waits.total / waits.count if waits.count else 0.0
        lines.append(
            f"pool {name}: {load.threads} threads, {load.calls} calls, "
            f"waits {waits.count}, mean {mean:.6f}s"
        )
    return _text("\n".join(lines) + "\n")


async def _threads(request: Request) -> Response:
    return _text("".join(stacks.threads_told()))


async def _cmdline(request: Request) -> Response:
    return _text("\0".join(sys.orig_argv))


async def _vars(request: Request) -> Response:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    values = {
        "version": SERVER_VERSION,
        "cmdline": sys.orig_argv,
        "memory": {
            "resident_bytes": _resident(),
            "peak_resident_bytes": usage.ru_maxrss * 1024,
        },
        "cpu": {"user_seconds": usage.ru_utime, "system_seconds": usage.ru_stime},
        "collector": {"counts": gc.get_count(), "generations": gc.get_stats()},
        "now": stacks.counts(),
    }
    return Response(json.dumps(values, indent=1).encode() + b"\n", "application/json")


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class _Profiler:
    """Looks at the stacks of all threads again and again; one profile at a time."""

    def __init__(self) -> None:
        self._busy = False

    async def answer(self, request: Request) -> Response:
        try:
            seconds = float(request.query.get("seconds", PROFILE_SECONDS))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= MOST_SECONDS:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"seconds is a number up to {MOST_SECONDS:g}")
        if self._busy:
            raise HttpError(HTTPStatus.TOO_MANY_REQUESTS, "a profile is being made")
        self._busy = True
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Counter[str]] = loop.create_future()

        def tell(found: Counter[str]) -> None:
            if not done.done():
                done.set_result(found)

        def run() -> None:
            found = sample(seconds, stop)
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(tell, found)

        thread = threading.Thread(target=run, name="profiler", daemon=True)
        thread.start()
        try:
            found = await done
        finally:
            stop.set()
            self._busy = False
        return _text("".join(f"{stack} {count}\n" for stack, count in found.most_common()))


def sample(seconds: float, stop: threading.Event) -> Counter[str]:
    """How often each stack was seen, as ``thread;outermost;...;innermost``."""
    found: Counter[str] = Counter()
    end = time.monotonic() + seconds
    own = threading.get_ident()
    while not stop.wait(SAMPLE_SECONDS) and time.monotonic() < end:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != own:
                found[f"{names.get(ident, ident)};{_collapsed(frame)}"] += 1
    return found


def _collapsed(frame: FrameType | None) -> str:
    words: list[str] = []
    while frame is not None:
        module = frame.f_globals.get("__name__", "?")
        words.append(f"{module}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return ";".join(reversed(words))
