"""Async. How the plugins are made that run containers, and keep them running.

Cheap to import: what one needs is imported when it is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cradled.daemon import durations, sections
from cradled.daemon import plugin_keys as keys
from cradled.plugin.types import InitContext, Late

_RESTART_SECONDS = 10.0


async def zygote(context: InitContext) -> Any:
    from cradled.zygote.client import Zygote

    zygote = Zygote()
    context.stack.push_async_callback(zygote.aclose)
    return zygote


async def shims(context: InitContext) -> Any:
    from cradled.runtime.bootstrap import SOCKET_DIR_LIMIT, Daemon
    from cradled.runtime.launcher import WHOLE_NAMESPACE, Launchers
    from cradled.runtime.timeouts import Timeouts

    config: sections.ShimManager = context.config
    if len(config.socket_dir) > SOCKET_DIR_LIMIT:
        raise ValueError(f"socket_dir is longer than {SOCKET_DIR_LIMIT} characters")
    timeout: Callable[[str], float] = context.properties["timeout"]
    daemon = Daemon(
        grpc_address=context.properties["grpc_address"],
        ttrpc_address=context.properties["ttrpc_address"],
        socket_dir=config.socket_dir or f"{context.state_base}/s",
        env=dict(item.partition("=")[::2] for item in config.env),
        debug=context.properties["debug"] == "true",
        timeouts=Timeouts(
            start=timeout("shim.start") or None,
            runtime=timeout("runtime.command") or None,
            load=timeout("shim.load") or None,
            cleanup=timeout("shim.cleanup") or None,
            shutdown=timeout("shim.shutdown") or None,
            state=timeout("task.state") or None,
            stats=timeout("metrics.shimstats") or None,
        ),
    )
    return Launchers(
        daemon,
        context.get(*keys.ZYGOTE),
        runc_root=f"{context.state_base}/runc",
        default_binary=config.binary_name,
        shims=config.shims,
        group=WHOLE_NAMESPACE if config.grouping else "",
    )


async def tasks(context: InitContext) -> Any:
    from cradled.runtime.assembly import Assembly
    from cradled.runtime.manager import TaskManager
    from cradled.runtime.shims import Shims

    db = context.get(*keys.DB)

    def checkpoints() -> Any:
        from cradled.runtime.checkpoints import Checkpoints

        return Checkpoints(context.get(*keys.DIFFERS), lambda scope: db.scoped(scope).content)

    async def sandbox(scope: Any, id: str) -> Any:
        await db.scoped(scope).sandboxes.get(id)
        plugin = context.loaded.get(keys.SANDBOXES)
        made = None if plugin is None or plugin.instance is None else plugin.instance.made
        return None if made is None else made.endpoint(scope, id)

    shims = Shims(context.state, context.root, context.get(*keys.SHIMS))
    manager = TaskManager(
        Assembly(shims, checkpoints, sandbox),
        lambda scope, id: db.scoped(scope).containers.get(id),
        context.get(*keys.EXCHANGE),
    )
    context.stack.push_async_callback(manager.aclose)
    context.export("log-uri-schemes", "fifo,binary,file")
    context.export("state", context.state_base)
    await manager.recover(context.get(*keys.JOURNAL).exits())
    return manager


async def sandboxes(context: InitContext) -> Late:
    def make() -> Any:
        from cradled.runtime.sandbox import ShimSandboxes
        from cradled.runtime.shims import Shims

        return ShimSandboxes(Shims(context.state, context.root, context.get(*keys.SHIMS)))

    async def close() -> None:
        if late.made is not None:
            await late.made.aclose()

    late = Late(make)
    context.stack.push_async_callback(close)
    if os.path.isdir(context.state):  # there was one, once
        await late.get().recover()
    return late


async def restarts(context: InitContext) -> Any:
    from cradled.core.restart import NAMES
    from cradled.daemon.restart_gate import Gate

    config: sections.RestartMonitor = context.config
    interval = durations.seconds(config.interval) or _RESTART_SECONDS
    context.plugin.capabilities.extend(NAMES)
    gate = Gate(
        context.get(*keys.DB), context.get(*keys.EXCHANGE), context.properties["client"], interval
    )
    context.stack.push_async_callback(gate.aclose)
    return gate
