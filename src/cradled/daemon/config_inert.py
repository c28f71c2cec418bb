"""Pure. What files of the original may say that has no effect here, and why.

Only needed where there is a file to be read, or to be written in full.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from cradled.plugin import types as t

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}
_PLATFORM = f"linux/{_ARCHITECTURES.get(os.uname().machine, os.uname().machine)}"


class Tasks(NamedTuple):
    platforms: tuple[str, ...] = (_PLATFORM,)


class TasksService(NamedTuple):
    blockio_config_file: str = ""
    rdt_config_file: str = ""


class Otlp(NamedTuple):
    endpoint: str = ""
    protocol: str = ""
    insecure: bool = False


class Tracing(NamedTuple):
    sampling_ratio: float = 0.0
    service_name: str = ""


_OTLP = f"{t.TRACING}.otlp"
_TASKS = f"{t.RUNTIME}.task"
_TASKS_SERVICE = f"{t.SERVICE}.tasks-service"
_TRACING = f"{t.INTERNAL}.tracing"

SECTIONS: Mapping[str, type[Any]] = {
    _OTLP: Otlp,
    _TASKS: Tasks,
    _TASKS_SERVICE: TasksService,
    _TRACING: Tracing,
}
"""Of plugins that have no keys but these."""

_FROM_ENVIRONMENT = "tracing is configured by the environment (OTEL_*)"
_NOT_PULLED = "this daemon does not pull and push images yet"

REASONS: Mapping[str, Mapping[str, str]] = {
    "": {
        "plugin_dir": "plugins in Go cannot be loaded",
        "subreaper": "shims reap their processes themselves",
        "no_subreaper": "shims reap their processes themselves",
    },
    "timeouts": {
        "io.containerd.timeout.bolt.open": "who has root has the database",
        "io.containerd.timeout.cri.defercleanup": "this daemon has no CRI yet",
    },
    _TASKS: {"platforms": "tasks are of the host's own platform"},
    _TASKS_SERVICE: {
        "blockio_config_file": "tasks get no block I/O classes",
        "rdt_config_file": "tasks get no RDT classes",
    },
    f"{t.TRANSFER}.local": {
        "max_concurrent_downloads": _NOT_PULLED,
        "concurrent_layer_fetch_buffer": _NOT_PULLED,
        "max_concurrent_uploaded_layers": _NOT_PULLED,
        "check_platform_supported": _NOT_PULLED,
        "config_path": _NOT_PULLED,
        "unpack_config": "images are unpacked for whatever snapshotter a request names",
    },
    _OTLP: dict.fromkeys(Otlp._fields, _FROM_ENVIRONMENT),
    _TRACING: dict.fromkeys(Tracing._fields, _FROM_ENVIRONMENT),
}
"""Why some keys that are known change nothing, by plugin (or table) and key; ``*`` is any.

Those of no table were keys of old versions.
"""
