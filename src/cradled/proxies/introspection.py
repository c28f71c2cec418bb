"""Async. What a server tells about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cradled.api import introspection_pb2 as pb
from cradled.api import version_pb2
from cradled.api.wellknown_pb2 import Empty
from cradled.convert.values import any_from_proto, any_to_proto, nanoseconds
from cradled.core.deprecations import Deprecation
from cradled.core.values import AnyValue
from cradled.rpc.stub import Stub, Transport


@dataclass(frozen=True, slots=True)
class Version:
    """The server's, e.g. ``v2.3.4+cradled.0.1.0``."""

    version: str
    revision: str


@dataclass(frozen=True, slots=True)
class Server:
    """``uuid`` stays over restarts; ``pid`` counts in the pid namespace with inode ``pidns``."""

    uuid: str
    pid: int
    pidns: int
    deprecations: Sequence[Deprecation] = ()


@dataclass(frozen=True, slots=True)
class Plugin:
    """``error`` is empty for a plugin that works."""

    type: str
    id: str
    exports: Mapping[str, str]
    capabilities: Sequence[str]
    error: str


class ProxyIntrospection:
    def __init__(self, transport: Transport) -> None:
        self._stub = Stub(transport, pb.Introspection)
        self._version = Stub(transport, version_pb2.Version)

    async def version(self, *, timeout: float | None = None) -> Version:
        response = await self._version.version(Empty(), timeout=timeout)
        return Version(response.version, response.revision)

    async def server(self) -> Server:
        response = await self._stub.server(Empty())
        found = tuple(
            Deprecation(warning.id, warning.message, nanoseconds(warning.last_occurrence))
            for warning in response.deprecations
        )
        return Server(response.uuid, response.pid, response.pidns, found)

    async def plugin_info(self, type: str, id: str, options: AnyValue, /) -> AnyValue:
        """What a plugin tells of itself when it is asked with ``options``.

        Raises NotFound without such a plugin, Unimplemented where it has nothing to tell.
        """
        request = pb.PluginInfoRequest(type=type, id=id, options=any_to_proto(options))
        return any_from_proto((await self._stub.plugin_info(request)).extra)

    async def plugins(self, filters: Sequence[str] = (), /) -> list[Plugin]:
        response = await self._stub.plugins(pb.PluginsRequest(filters=filters))
        return [
            Plugin(p.type, p.id, dict(p.exports), tuple(p.capabilities), p.init_err.message)
            for p in response.plugins
        ]
