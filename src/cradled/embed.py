"""Async. The runtime inside the caller's process.

    async with cradled.Runtime(root="/var/lib/app/root", state="/run/app") as rt:
        ...

The same app as the daemon's, with no listener but the private socket on which shims report. It
changes nothing of the process: no signals, umask, working directory, limits or logging. Leaving
the block leaves containers running; who opens root and state next, library or daemon, finds them.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from cradled.daemon import listeners
from cradled.daemon.config import DEFAULT_ROOT, DEFAULT_STATE, Config

if TYPE_CHECKING:
    from cradled.client.client import Client


class Runtime:
    """Enter it on a running asyncio loop to get a ``client.Client``.

    ``root`` keeps what survives a reboot, ``state`` what does not; both belong to this runtime
    alone. Entering raises ``StartError`` that names the process that has them already.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = DEFAULT_ROOT,
        state: str | os.PathLike[str] = DEFAULT_STATE,
        *,
        namespace: str = "default",
        config: Config | None = None,
    ) -> None:
        root, state = os.path.abspath(root), os.path.abspath(state)
        self._config = (config or Config())._replace(root=root, state=state)
        self._namespace = namespace
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Client:
        async with AsyncExitStack() as stack:
            client = await self._start(stack)
            self._stack = stack.pop_all()
        return client

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> Client:
        from cradled.daemon.app import App

        config = self._config
        listeners.make_directory(config.root, 0o700, "root")
        listeners.make_directory(config.state, 0o711, "state")
        for directory, what in ((config.root, "root"), (config.state, "state")):
            stack.callback(os.close, listeners.hold(directory, what))
        app = await stack.enter_async_context(App(config))
        return app.client().within(self._namespace)
