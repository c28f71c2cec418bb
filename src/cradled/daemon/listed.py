"""Pure. Plugins that clients look for and that nothing here starts.

Some are what another plugin of ours does, so they are well; the others are not there, which is told
as the original tells of a plugin that is not wanted: a daemon with a skipped plugin is not broken.
"""

from __future__ import annotations

from cradled.plugin import types as t
from cradled.plugin.types import Plugin, Registration, SkipPlugin

Key = tuple[str, str]

_DONE_ELSEWHERE = (
    Registration(t.TASK_MONITOR, "cgroups", (t.EVENT,), has_platform=True),
    Registration(t.HTTP, "pprof"),
)

_ABSENT = (
    Registration(t.IMAGE_VERIFIER, "bindir"),
    Registration(t.INTERNAL, "opt"),
    Registration(t.MOUNT_HANDLER, "erofs", has_platform=True),
    *(Registration(t.SNAPSHOTTER, id, has_platform=True) for id in ("devmapper", "erofs", "zfs")),
    Registration(t.NRI, "nri", (t.INTERNAL, t.WARNING)),
    Registration(t.DIFFER, "erofs", (t.METADATA,)),
    Registration(t.MOUNT_MANAGER, "bolt", (t.METADATA, t.MOUNT_HANDLER)),
    Registration(
        t.CRI,
        "images",
        (t.LEASE, t.METADATA, t.SANDBOX_STORE, t.SERVICE, t.SNAPSHOTTER, t.TRANSFER, t.WARNING),
    ),
    Registration(t.CRI, "runtime", (t.WARNING,), has_platform=True),
    Registration(
        t.POD_SANDBOX,
        "podsandbox",
        (t.EVENT, t.LEASE, t.SANDBOX_STORE, t.TRANSFER, t.CRI, t.SERVICE, t.WARNING),
    ),
    Registration(t.GRPC, "cri", (t.CRI, t.POD_SANDBOX, t.SANDBOX_CONTROLLER, t.NRI, t.EVENT)),
    Registration(t.METRICS, "grpc-otel", (t.GRPC,)),
)


def plugins() -> dict[Key, Plugin]:
    """All of them, by type and id."""
    found = [Plugin(registration) for registration in (*_DONE_ELSEWHERE, *_ABSENT)]
    for plugin in found[len(_DONE_ELSEWHERE) :]:
        plugin.error = SkipPlugin("not implemented")
    return {(plugin.registration.type, plugin.registration.id): plugin for plugin in found}
