"""Async. Plugins in the order their requirements ask for, each started once.

A plugin that fails is shown by Introspection and its dependants go without it; one that the
configuration requires stops the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from cradled.plugin.types import InitContext, Plugin, Registration, SkipPlugin

log = logging.getLogger(__name__)


class PluginError(Exception):
    """The graph cannot be started: a cycle, or a required plugin failed."""


def order(registrations: Iterable[Registration]) -> list[Registration]:
    """Requirements first, otherwise as given. Raises PluginError for a cycle."""
    given = list(registrations)
    done: list[Registration] = []
    state: dict[str, bool] = {}

    def visit(item: Registration) -> None:
        if state.get(item.uri):
            return
        if item.uri in state:
            raise PluginError(f"plugin {item.uri} requires itself")
        state[item.uri] = False
        for needed in item.requires:
            for other in given:
                if other.type == needed:
                    visit(other)
        state[item.uri] = True
        done.append(item)

    for item in given:
        visit(item)
    return done


async def start(
    registrations: Iterable[Registration],
    *,
    root: str,
    state: str,
    stack: AsyncExitStack,
    config_of: Callable[[Registration], Any],
    properties: Mapping[str, Any],
    disabled: Collection[str] = (),
    required: Collection[str] = (),
) -> Mapping[tuple[str, str], Plugin]:
    """Start all plugins; what they hold is released by ``stack``.

    Raises PluginError when a required plugin fails or is not there.
    """
    loaded: dict[tuple[str, str], Plugin] = {}
    for registration in order(registrations):
        if registration.uri in disabled:
            continue
        plugin = Plugin(registration)
        if registration.init is not None:
            config = config_of(registration)
            context = InitContext(plugin, config, properties, root, state, stack, loaded)
            await _init(plugin, context)
        if plugin.error is not None and registration.uri in required:
            raise PluginError(f"load required plugin {registration.uri}: {plugin.error}")
        loaded[registration.type, registration.id] = plugin
    missing = set(required) - {plugin.registration.uri for plugin in loaded.values()}
    if missing:
        raise PluginError(f"required plugin {', '.join(sorted(missing))} not included")
    return loaded


async def _init(plugin: Plugin, context: InitContext) -> None:
    registration = plugin.registration
    assert registration.init is not None
    try:
        plugin.instance = await registration.init(context)
    except SkipPlugin as error:
        plugin.error = error
        log.info("skip loading plugin %s: %s", registration.uri, error)
    except Exception as error:
        plugin.error = error
        log.warning("failed to load plugin %s", registration.uri, exc_info=error)
