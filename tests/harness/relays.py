"""The way by a second server: what a service is run over when it stands before another daemon.

``ProxyDatabase`` stands for the metadata database: a service made over it asks ``cradled.proxies``
for everything, and they ask the server behind the transport. ``Relay`` is for services that have
no proxy: it hands every call on as it is.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

from cradled.api.pool import Method, Service
from cradled.convert import containers as convert_containers
from cradled.convert import images as convert_images
from cradled.core.scope import Scope
from cradled.core.values import Descriptor
from cradled.proxies.containers import ProxyContainers
from cradled.proxies.content import ProxyContentStore
from cradled.proxies.images import ProxyImages
from cradled.proxies.leases import ProxyLeases
from cradled.proxies.namespaces import ProxyNamespaces
from cradled.proxies.sandboxes import ProxySandboxes
from cradled.proxies.snapshots import ProxySnapshotter
from cradled.rpc.call import Call
from cradled.rpc.service import Message, snake_case
from cradled.rpc.stub import ClientStream, Transport


class ProxyDatabase:
    """What services ask of ``metadata.db.Database`` and ``gc.scheduler.Scheduler``, by proxy."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.namespaces = ProxyNamespaces(transport)

    def scoped(self, scope: Scope, /) -> ProxyScoped:
        return ProxyScoped(self._transport, scope)

    async def collect(self) -> None:
        """A collection is asked for as clients ask for one: by the end of a lease."""
        leases = ProxyLeases(self._transport, Scope("relay"))
        lease = await leases.create("", {})
        await leases.delete(lease.id, sync=True)


class ProxyScoped:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._transport = transport
        self._scope = scope
        self.containers = _Containers(transport, scope)
        self.images = _Images(transport, scope)
        self.leases = ProxyLeases(transport, scope)
        self.sandboxes = ProxySandboxes(transport, scope)
        self.content = ProxyContentStore(transport, scope)

    def snapshots(self, name: str, /) -> ProxySnapshotter:
        return ProxySnapshotter(self._transport, self._scope, name)


class _Containers(ProxyContainers):
    async def get_record(self, id: str, /) -> bytes:
        return convert_containers.encode(await self.get(id))

    async def list_records(self, filters: Sequence[str] = (), /) -> list[bytes]:
        return [convert_containers.encode(found) for found in await self.list(filters)]


class _Images(ProxyImages):
    async def get_record(self, name: str, /) -> bytes:
        return convert_images.encode(await self.get(name))

    async def list_records(self, filters: Sequence[str] = (), /) -> list[bytes]:
        return [convert_images.encode(found) for found in await self.list(filters)]

    async def delete(self, name: str, /, target: Any = "", sync: bool = False) -> None:
        wanted = Descriptor("", target, 0) if target else None
        await super().delete(name, target=wanted, sync=sync)


class Relay:
    """An implementation of any service that asks the same of another server."""

    def __init__(self, transport: Transport, service: Service) -> None:
        for method in service.methods.values():
            make = _stream if method.server_streaming or method.client_streaming else _unary
            setattr(self, snake_case(method.name), make(transport, method))


def _unary(transport: Transport, method: Method) -> Callable[[Call, Message], Any]:
    async def handler(call: Call, request: Message) -> Message:
        return await transport.call(method, request, metadata=_metadata(call))

    return handler


def _stream(transport: Transport, method: Method) -> Callable[[Call, Any], Any]:
    async def both_ways(call: Call, request: Any) -> AsyncIterator[Message]:
        requests = request if method.client_streaming else _one(request)
        async with transport.open(method, metadata=_metadata(call)) as stream:
            pump = asyncio.create_task(_pump(requests, stream))
            try:
                async for response in stream:
                    yield response
            finally:
                pump.cancel()
                with suppress(asyncio.CancelledError):
                    await pump

    async def answered_once(call: Call, requests: Any) -> Message:
        async for response in both_ways(call, requests):
            return response
        raise AssertionError(f"{method.path} was not answered")

    return both_ways if method.server_streaming else answered_once


async def _pump(requests: AsyncIterator[Message], stream: ClientStream) -> None:
    async for request in requests:
        await stream.send(request)
    await stream.done()


async def _one(request: Message) -> AsyncIterator[Message]:
    yield request


def _metadata(call: Call) -> list[tuple[str, str]]:
    binary = {key: base64.b64encode(value).decode() for key, value in call.binary.items()}
    return [*call.metadata.items(), *binary.items()]
