"""Pure. What is in use here and will not be supported for ever; clients show it as warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

PREFIX = "io.containerd.deprecation/"

_IMAGES = 'plugins."io.containerd.cri.v1.images"'
_RUNTIME = 'plugins."io.containerd.cri.v1.runtime"'

_OTLP = "the environment variables of OpenTelemetry"

CGROUP_V1 = "cgroup-v1"

MESSAGES = {
    CGROUP_V1: (
        "This host uses cgroup v1, which goes out of support by May 2029 at the latest. "
        "Move it to cgroup v2."
    ),
    "cri-registry-mirrors": f"Key registry.mirrors of {_IMAGES}: use registry.config_path.",
    "cri-registry-auths": f"Key registry.auths of {_IMAGES}: use image pull secrets.",
    "cri-registry-configs": f"Key registry.configs of {_IMAGES}: use registry.config_path.",
    "cri-cni-bin-dir": f"Key cni.bin_dir of {_RUNTIME}: use cni.bin_dirs.",
    "tracing-processor-config": (
        f'Section plugins."io.containerd.tracing.processor.v1.otlp": use {_OTLP}.'
    ),
    "tracing-service-config": f'Section plugins."io.containerd.internal.v1.tracing": use {_OTLP}.',
}

_KEYS = {
    "cri-registry-mirrors": ("io.containerd.cri.v1.images", "registry", "mirrors"),
    "cri-registry-auths": ("io.containerd.cri.v1.images", "registry", "auths"),
    "cri-registry-configs": ("io.containerd.cri.v1.images", "registry", "configs"),
    "cri-cni-bin-dir": ("io.containerd.cri.v1.runtime", "cni", "bin_dir"),
    "tracing-processor-config": ("io.containerd.tracing.processor.v1.otlp",),
    "tracing-service-config": ("io.containerd.internal.v1.tracing",),
}


class Deprecation(NamedTuple):
    """``last_occurrence``: when it was last used, in nanoseconds since the epoch."""

    id: str
    message: str
    last_occurrence: int


class Deprecations:
    """What has been used since the daemon started, by name."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def emit(self, name: str, now: int) -> None:
        """Something was used that has a message here, at ``now`` (nanoseconds)."""
        assert name in MESSAGES, name
        self._seen[name] = now

    def all(self) -> list[Deprecation]:
        return [
            Deprecation(PREFIX + name, MESSAGES[name], at)
            for name, at in sorted(self._seen.items())
        ]


def in_sections(plugins: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of what a configuration's plugin sections (version 4) use."""
    return [name for name, path in _KEYS.items() if _is_set(plugins, path)]


def _is_set(table: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    return bool(table)
