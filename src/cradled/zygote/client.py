"""Async. The daemon's hold on its zygote: start it when needed, have it fork.

The zygote is spawned, never forked, and found dead by its pidfd; the next fork starts another. One
that does not answer for ``PATIENCE`` seconds is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import cradled
from cradled.linux.limits import restore_files
from cradled.linux.tree import remove_tree
from cradled.zygote import protocol

PRELOAD = ("cradled.shim.serve",)
"""What is forked often; other children import their modules themselves, after the fork."""

PATIENCE = 30.0

MAX_FDS = protocol.MAX_FDS - 1
"""One is for the reply."""

_BOOT = (
    "import sys; preload = sys.argv[1].split(','); sys.path[:0] = sys.argv[2:]; "
    "from cradled.zygote.server import main; main(preload)"
)


class ZygoteLost(ConnectionError):
    """No zygote lived long enough to fork, or answered; there is no child."""


class Zygote:
    """Forks processes that outlive the daemon. ``env`` is theirs; the default is ours."""

    def __init__(
        self, preload: Sequence[str] = PRELOAD, *, env: Mapping[str, str] | None = None
    ) -> None:
        self._preload = list(preload)
        self._env = dict(os.environ if env is None else env)
        self.starts = 0
        self.forks: dict[str, int] = {}
        """How many children were forked, by name."""
        self._lock = asyncio.Lock()
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The running zygote's pid."""
        process = self._process
        return None if process is None or process.died.is_set() else process.pid

    def start(self) -> None:
        """Start it unless it runs; it imports in the background."""
        if self.pid is None:
            if self._process is not None:
                self._process.close()
            self._process = _Process(self._preload, self._env)
            self.starts += 1

    async def fork(
        self,
        entry: str,
        params: dict[str, Any],
        fds: Sequence[int] = (),
        *,
        name: str = "",
        oom_score_adj: int | None = None,
        cgroups: Sequence[str] = (),
    ) -> tuple[int, int]:
        """Fork a child that calls ``entry`` (``module:function``) with ``params`` and ``fds``.

        Returns its pid and a pidfd, which the caller closes. The child gets copies of ``fds``
        under other numbers, in the same order. ``cgroups`` are directories to join. Raises
        OSError when the fork failed, ZygoteLost, and ValueError for params that are too large. A
        cancelled fork leaves no child.
        """
        request = protocol.request(entry, params, name, oom_score_adj, list(cgroups))
        data = protocol.encode(request)
        if len(fds) > MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors are over the limit of {MAX_FDS}")
        async with self._lock:
            reply = asyncio.ensure_future(self._exchange(data, fds))
            try:
                child = _result(*await asyncio.shield(reply))
                self.forks[name] = self.forks.get(name, 0) + 1
                return child
            except asyncio.CancelledError:
                if not reply.cancelled():
                    await _discard(reply)
                raise

    async def aclose(self) -> None:
        """Have the zygote exit; what it forked lives on."""
        async with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.close()
                await process.died.wait()

    async def _exchange(self, data: bytes, fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._ask(data, fds)
        except _NotForked:
            pass
        try:
            return await self._ask(data, fds)
        except _NotForked as error:
            raise ZygoteLost("the zygote does not live, or does not answer") from error

    async def _ask(self, data: bytes, fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        self.start()
        process = self._process
        assert process is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs, suppress(ConnectionError):
                # One at a time: never blocks.
                protocol.send(process.control, data, [theirs.fileno(), *fds])
            try:
                await asyncio.wait_for(_readable(ours.fileno()), PATIENCE)
                reply, received = protocol.receive(ours)
            except TimeoutError:
                process.kill()
                reply, received = b"", []
        if reply:
            return protocol.decode(reply), received
        process.close()
        await process.died.wait()
        raise _NotForked


class _NotForked(Exception):
    """The zygote, or its child, died before the child was anything, or never answered."""


class _Process:
    """One spawned zygote."""

    def __init__(self, preload: list[str], env: dict[str, str]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        with theirs:
            self.pid = _spawn(theirs.fileno(), preload, env)
        self._scratch = protocol.scratch(env, self.pid)
        restore_files(self.pid)  # long before its first child
        self.died = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with suppress(ChildProcessError):  # the embedding program may reap all there is
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        if os.path.isdir(self._scratch):
            self._loop.run_in_executor(None, _clear, self._scratch)
        self.died.set()

    def kill(self) -> None:
        """End it whatever it does; a child that it is making is never anybody's."""
        if not self.died.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Closing the control socket ends it."""
        self.control.close()


def _clear(directory: str) -> None:
    with suppress(OSError):
        remove_tree(directory)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(fd, _settle, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _spawn(control: int, preload: list[str], env: dict[str, str]) -> int:
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", _BOOT, ",".join(preload), *import_path()],
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, control, protocol.CONTROL_FD),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def import_path() -> list[str]:
    """Where an isolated interpreter finds ``cradled`` and its dependencies: absolute paths only."""
    own = os.path.dirname(os.path.dirname(os.path.realpath(cradled.__file__)))
    return [own, *(entry for entry in sys.path if os.path.isabs(entry) and entry != own)]


def _result(reply: dict[str, Any], fds: list[int]) -> tuple[int, int]:
    if "errno" in reply:
        raise OSError(reply["errno"], f"zygote: {os.strerror(reply['errno'])}")
    return reply["pid"], fds[0]


async def _discard(reply: asyncio.Future[tuple[dict[str, Any], list[int]]]) -> None:
    """Wait a fork out that nobody wants any more, and end its child."""
    while not reply.done():
        with suppress(asyncio.CancelledError, Exception):
            await asyncio.shield(reply)
    if reply.exception() is None:
        for pidfd in reply.result()[1]:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
