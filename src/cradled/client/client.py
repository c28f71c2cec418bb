"""Async. The client: everything a runtime does, in the words of its users.

One API, wherever the runtime is: behind a socket (``connect``) or in this process (``Runtime``).
A client changes nothing of the process it lives in: no signal handlers, no umask, no logging.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from cradled.client.session import SNAPSHOTTER, Session
from cradled.core.scope import Scope
from cradled.rpc.stub import Transport

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from cradled.client.containers import Container, Containers
    from cradled.client.events import Event
    from cradled.client.images import Images
    from cradled.client.options import Options
    from cradled.client.processes import Result
    from cradled.client.traces import Trace
    from cradled.client.upgrade import Upgraded
    from cradled.core.images import Image
    from cradled.proxies.introspection import Plugin, ProxyIntrospection, Server, Version
    from cradled.proxies.namespaces import ProxyNamespaces

NAMESPACE = "default"


class Client:
    """Images, containers and events of one namespace.

    ``fifo_dir`` is where the pipes of processes are made; it must be on a file system that the
    runtime sees too.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        fifo_dir: Path,
        namespace: str = NAMESPACE,
        snapshotter: str = SNAPSHOTTER,
    ) -> None:
        self.session = Session(transport, Scope(namespace), fifo_dir, snapshotter)

    @cached_property
    def images(self) -> Images:
        from cradled.client.images import Images

        return Images(self.session)

    @cached_property
    def containers(self) -> Containers:
        from cradled.client.containers import Containers

        return Containers(self.session)

    @cached_property
    def namespaces(self) -> ProxyNamespaces:
        from cradled.proxies.namespaces import ProxyNamespaces

        return ProxyNamespaces(self.session.transport)

    @cached_property
    def _introspection(self) -> ProxyIntrospection:
        from cradled.proxies.introspection import ProxyIntrospection

        return ProxyIntrospection(self.session.transport)

    def within(self, namespace: str) -> Client:
        """The same runtime, another namespace."""
        session = self.session
        return Client(
            session.transport,
            fifo_dir=session.fifo_dir,
            namespace=namespace,
            snapshotter=session.snapshotter,
        )

    async def version(self) -> Version:
        return await self._introspection.version()

    async def server(self) -> Server:
        return await self._introspection.server()

    async def plugins(self) -> list[Plugin]:
        """What the server is made of, with what failed and what it is not configured to have."""
        return await self._introspection.plugins()

    async def upgrade(self) -> Upgraded:
        """Have the program, as it is installed now, go on in the daemon's place; returns when it
        serves. What others were waiting for ends in Unavailable; no container is touched.

        Raises FailedPrecondition when it does not start, or an upgrade is under way already: then
        the old daemon goes on. Raises Unimplemented in process.
        """
        from cradled.client.upgrade import upgrade

        return await upgrade(self.session)

    async def trace(
        self, *, last: int = 10, slowest: bool = False, single: bool = False
    ) -> list[Trace]:
        """What the runtime did last, of all namespaces, with its steps and their durations.

        ``slowest``: those that took longest of all it remembers, slowest first; ``single``: calls
        that had no steps, too.
        """
        from cradled.client import traces

        return await traces.fetch(self._introspection, last, slowest=slowest, single=single)

    async def events(
        self, *filters: str, since: str | timedelta | datetime | None = None
    ) -> AsyncIterator[Event]:
        """What happens from now on, in all namespaces unless a filter says otherwise.

        With ``since`` events have positions, and what happened before comes first: all that
        followed the position of an event, or of so long a time (``timedelta()``: nothing, only
        with positions), or since an aware datetime. Whoever was cut off resumes with the last
        position it has seen.

        Raises OutOfRange when what followed a position is not kept any more or has not happened,
        FailedPrecondition when it is of a journal that is lost (a reboot), and Unimplemented where
        the server has no journal.
        """
        from cradled.client import events

        source = (
            events.subscribe(self.session, filters)
            if since is None
            else events.follow(self.session, filters, since)
        )
        async with aclosing(source):
            async for event in source:
                yield event

    async def run(
        self,
        image: str | Image,
        args: Sequence[str] = (),
        *,
        name: str = "",
        input: bytes | None = None,
        remove: bool = True,
        **options: Unpack[Options],
    ) -> Result:
        """Run a container to its end and return its exit status and output.

        ``input`` is what it reads. With ``remove`` nothing is left of it afterwards, also when
        this call is cancelled, which kills it; else the stopped container stays.
        """
        container = await self.containers.create(image, args, name=name, **options)
        try:
            task = await container.start(stdin=input is not None)
            return await task.communicate(input)
        finally:
            if remove:
                await _shielded_remove(container)


@asynccontextmanager
async def connect(
    address: str, *, namespace: str = NAMESPACE, snapshotter: str = SNAPSHOTTER
) -> AsyncIterator[Client]:
    """A client of the daemon behind a unix socket: ``async with connect(path) as client``.

    Raises Unavailable when nothing listens there.
    """
    from cradled.rpc import grpc_client  # not wanted by those who run in process

    path = address.removeprefix("unix://")
    channel = await grpc_client.connect(path)
    try:
        fifo_dir = Path(path).absolute().parent / "fifo"
        yield Client(channel, fifo_dir=fifo_dir, namespace=namespace, snapshotter=snapshotter)
    finally:
        await channel.aclose()


async def _shielded_remove(container: Container) -> None:
    """To the end, even if the caller is cancelled meanwhile; the cancellation comes after it."""
    removal = asyncio.ensure_future(container.remove(force=True))
    cancelled = False
    while not removal.done():
        try:
            await asyncio.wait((removal,))
        except asyncio.CancelledError:
            cancelled = True
    removal.result()
    if cancelled:
        raise asyncio.CancelledError
