"""Async. Plugins that other processes serve (``[proxy_plugins.<id>]``), as if they were ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

from cradled.daemon.config import Config, ConfigError, ProxyPlugin
from cradled.plugin import types as t
from cradled.plugin.types import InitContext, Registration, SkipPlugin

_TYPES = {
    "content": t.CONTENT,
    "diff": t.DIFFER,
    "sandbox": t.SANDBOX_CONTROLLER,
    "snapshot": t.SNAPSHOTTER,
}


def registrations(config: Config, ours: Collection[str]) -> Iterator[Registration]:
    """What is configured. Raises ConfigError for the name of one of ``ours`` (URIs)."""
    for id, proxy in config.proxy_plugins.items():
        registration = Registration(
            _TYPES.get(proxy.type, proxy.type),
            id,
            init=functools.partial(_connect, proxy),
            has_platform=True,
        )
        if registration.uri in ours:
            raise ConfigError(f"proxy_plugins.{id}: there is a plugin {registration.uri} already")
        yield registration


async def _connect(proxy: ProxyPlugin, context: InitContext) -> Any:
    """Nobody is called yet: the other process may well be started after us."""
    make = _MAKERS.get(context.plugin.registration.type)
    if make is None:
        kinds = ", ".join(_TYPES)
        raise SkipPlugin(f'unknown type of a proxy plugin "{proxy.type}" (one of {kinds})')
    if not proxy.address:
        raise ValueError("a proxy plugin needs an address")
    context.export("address", proxy.address)
    for key, value in proxy.exports.items():
        context.export(key, value)
    context.plugin.capabilities.extend(proxy.capabilities)
    if proxy.platform:
        from cradled.oci import platforms

        context.plugin.platform = str(platforms.parse(proxy.platform))
    return make(proxy.address, context)


def _snapshotter(address: str, context: InitContext) -> Any:
    from cradled.core.scope import Scope
    from cradled.proxies.snapshots import ProxySnapshotter

    limit = context.properties["timeout"]("proxy.call") or None
    channel = _channel(address, context, limit)
    return ProxySnapshotter(channel, Scope(""), context.plugin.registration.id)


def _content(address: str, context: InitContext) -> Any:
    from cradled.core.scope import Scope
    from cradled.proxies.content import ProxyContentStore

    limit = context.properties["timeout"]("proxy.call") or None
    return ProxyContentStore(_channel(address, context, limit), Scope(""))


def _differ(address: str, context: InitContext) -> Any:
    from cradled.core.scope import Scope
    from cradled.proxies.diff import ProxyDiffer

    return ProxyDiffer(_channel(address, context, limit=None), Scope(""))


def _sandboxes(address: str, context: InitContext) -> Any:
    from cradled.proxies.sandboxes import ProxySandboxController

    channel = _channel(address, context, limit=None)
    return ProxySandboxController(channel, context.plugin.registration.id)


def _channel(address: str, context: InitContext, limit: float | None) -> Any:
    from cradled.proxies.plugin import PluginChannel

    path = address.removeprefix("unix://")
    channel = PluginChannel(context.plugin.registration.id, path, limit)
    context.stack.push_async_callback(channel.aclose)
    return channel


_MAKERS: dict[str, Callable[[str, InitContext], Any]] = {
    t.CONTENT: _content,
    t.DIFFER: _differ,
    t.SANDBOX_CONTROLLER: _sandboxes,
    t.SNAPSHOTTER: _snapshotter,
}
