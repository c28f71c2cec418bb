"""Pure. Type and id of the plugins that others ask for."""

from __future__ import annotations

from cradled.plugin import types as t

DB = (t.METADATA, "bolt")
DEPRECATIONS = (t.WARNING, "deprecations")
DIFFERS = (t.SERVICE, "diff-service")
EXCHANGE = (t.EVENT, "exchange")
GC = (t.GC, "scheduler")
JOURNAL = (t.JOURNAL, "events")
RESTARTS = (t.CONTAINER_MONITOR, "restart")
RING = (t.SPANS, "ring")
SANDBOXES = (t.SANDBOX_CONTROLLER, "shim")
SHIMS = (t.SHIM, "manager")
STREAMS = (t.STREAMING, "manager")
TASKS = (t.RUNTIME, "task")
TRANSFERS = (t.TRANSFER, "local")
WALKING = (t.DIFFER, "walking")
WORKERS = (t.FORKED, "workers")
ZYGOTE = (t.FORKED, "zygote")
