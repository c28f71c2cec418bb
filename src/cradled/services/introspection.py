"""Async. Introspection: what this daemon is made of and which daemon it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from cradled import filters
from cradled.api import introspection_pb2 as pb
from cradled.api.google_rpc_pb2 import Status
from cradled.api.types_pb2 import Platform as PlatformMessage
from cradled.api.wellknown_pb2 import Any, Empty
from cradled.convert.values import any_from_proto, any_to_proto, timestamp
from cradled.core.deprecations import Deprecation
from cradled.core.values import AnyValue
from cradled.errors import FailedPrecondition, NotFound, Unimplemented
from cradled.oci import platforms
from cradled.oci.platforms import Platform
from cradled.plugin.types import Plugin
from cradled.rpc.call import Call
from cradled.rpc.status import Code

InfoProvider = Callable[[AnyValue], Awaitable[AnyValue]]
"""Answers the options of a PluginInfo request with its ``extra``."""


class Identity(NamedTuple):
    """``uuid`` stays over restarts; ``pid`` counts in the pid namespace with inode ``pidns``."""

    uuid: str
    pid: int
    pidns: int


class IntrospectionService:
    def __init__(
        self,
        plugins: Mapping[tuple[str, str], Plugin],
        identity: Identity,
        *,
        platform: Platform,
        providers: Mapping[tuple[str, str], InfoProvider],
        deprecations: Callable[[], Iterable[Deprecation]],
    ) -> None:
        self._plugins = plugins
        self._identity = identity
        self._platform = PlatformMessage(os=platform.os, architecture=platform.architecture)
        self._providers = providers
        self._deprecations = deprecations

    async def plugins(self, call: Call, request: pb.PluginsRequest) -> pb.PluginsResponse:
        wanted = filters.parse(request.filters)
        return pb.PluginsResponse(
            plugins=[
                self._message(plugin)
                for plugin in self._plugins.values()
                if wanted.match(_fields(plugin))
            ]
        )

    async def server(self, call: Call, request: Empty) -> pb.ServerResponse:
        return pb.ServerResponse(
            **self._identity._asdict(), deprecations=map(_warning, self._deprecations())
        )

    async def plugin_info(self, call: Call, request: pb.PluginInfoRequest) -> pb.PluginInfoResponse:
        key = (request.type, request.id)
        plugin = self._plugins.get(key)
        if plugin is None:
            raise NotFound(f"plugin {request.type}.{request.id} not found", verbatim=True)
        extra: Any | None = None
        if request.HasField("options"):
            if plugin.error is not None:
                raise FailedPrecondition(f"plugin not loaded: {plugin.error}")
            provider = self._providers.get(key)
            if provider is None:
                raise Unimplemented("plugin does not provide info")
            extra = any_to_proto(await provider(any_from_proto(request.options)))
        return pb.PluginInfoResponse(plugin=self._message(plugin), extra=extra)

    def _message(self, plugin: Plugin) -> pb.Plugin:
        registration = plugin.registration
        error = None
        if plugin.error is not None:
            error = Status(code=Code.UNKNOWN, message=str(plugin.error))
        return pb.Plugin(
            type=registration.type,
            id=registration.id,
            requires=registration.requires,
            platforms=self._platforms(plugin),
            exports=plugin.exports,
            capabilities=plugin.capabilities,
            init_err=error,
        )

    def _platforms(self, plugin: Plugin) -> list[PlatformMessage]:
        if not plugin.platform:
            return [self._platform] if plugin.registration.has_platform else []
        return [_platform(platforms.parse(plugin.platform))]


def _platform(platform: Platform) -> PlatformMessage:
    return PlatformMessage(
        os=platform.os, architecture=platform.architecture, variant=platform.variant
    )


def _fields(plugin: Plugin) -> filters.Adaptor:
    registration = plugin.registration
    values: dict[tuple[str, ...], str] = {("type",): registration.type, ("id",): registration.id}
    return lambda path: values.get(path)


def _warning(deprecation: Deprecation) -> pb.DeprecationWarning:
    return pb.DeprecationWarning(
        id=deprecation.id,
        message=deprecation.message,
        last_occurrence=timestamp(deprecation.last_occurrence),
    )
