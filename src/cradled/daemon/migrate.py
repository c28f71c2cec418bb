"""Pure. Older configuration files in the layout of version 4.

    1  plugins by short names
    2  plugins by URI; CRI in one section
    3  CRI in three sections: images, runtime, server
    4  listeners are plugins as well

What has no new place stays where it is: the daemon warns about it, nothing is lost.
"""

from __future__ import annotations

from typing import Any

from cradled.daemon.config import VERSION, ConfigError, Table
from cradled.plugin import types as t

_SHORT_NAMES = {
    "aufs": t.SNAPSHOTTER,
    "blockfile": t.SNAPSHOTTER,
    "bolt": t.METADATA,
    "btrfs": t.SNAPSHOTTER,
    "cgroups": "io.containerd.monitor.v1",
    "content": t.CONTENT,
    "cri": t.GRPC,
    "devmapper": t.SNAPSHOTTER,
    "diff-service": t.SERVICE,
    "linux": "io.containerd.runtime.v1",
    "native": t.SNAPSHOTTER,
    "opt": t.INTERNAL,
    "overlayfs": t.SNAPSHOTTER,
    "restart": t.INTERNAL,
    "scheduler": t.GC,
    "task": t.RUNTIME,
    "tasks-service": t.SERVICE,
    "walking": t.DIFFER,
    "zfs": t.SNAPSHOTTER,
}

_RENAMED = {
    "io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
    "io.containerd.monitor.v1.cgroups": "io.containerd.monitor.task.v1.cgroups",
}

_CRI = f"{t.GRPC}.cri"
_CRI_IMAGES = "io.containerd.cri.v1.images"
_CRI_RUNTIME = "io.containerd.cri.v1.runtime"

_SERVER_KEYS = (
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
)
_IMAGE_KEYS = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
_IMAGE_KEYS_OF_CONTAINERD = (
    "snapshotter",
    "disable_snapshot_annotations",
    "discard_unpacked_layers",
)


def version_of(table: Table) -> int:
    """A file's version, 1 where it has none. Raises ConfigError."""
    version = table.get("version", 1)
    if type(version) is not int:
        raise ConfigError(f"version must be a whole number, not {version!r}")
    if version > VERSION:
        text = f"expected containerd config version equal to or less than {VERSION}, got {version}"
        raise ConfigError(text)
    return max(version, 1)


def lift(table: Table) -> Table:
    """A file's table in the layout of version 4; the given one stays as it is.

    Raises ConfigError for a version above that, and where a table must be and is none.
    """
    version = version_of(table)
    lifted: Table = {key: _copy(value) for key, value in table.items() if key != "plugins"}
    plugins = {uri: _copy(section) for uri, section in _table(table, "plugins").items()}
    for uri, section in plugins.items():
        if not isinstance(section, dict):
            raise ConfigError(f'plugins."{uri}" must be a table')
    if version < 2:
        plugins = {_long(name): section for name, section in plugins.items()}
    plugins = {_RENAMED.get(uri, uri): section for uri, section in plugins.items()}
    if version < 3:
        _split_cri(plugins)
        _move_core_scheduling(plugins)
    if version < 4:
        _move_servers(lifted, plugins)
    for key in ("disabled_plugins", "required_plugins"):
        if isinstance(lifted.get(key), list):
            lifted[key] = _uris(lifted[key], version)
    lifted["version"] = VERSION
    lifted["plugins"] = plugins
    return lifted


def _long(name: str) -> str:
    type = _SHORT_NAMES.get(name)
    return f"{type}.{name}" if type else name


def _uris(names: list[Any], version: int) -> list[Any]:
    uris: list[Any] = []
    for name in names:
        if not isinstance(name, str):  # told when the configuration is built
            uris.append(name)
            continue
        uri = _long(name) if version < 2 else name
        uris.append(_RENAMED.get(uri, uri))
        if uri == _CRI and version < 3:  # was the whole of CRI
            uris += [_CRI_IMAGES, _CRI_RUNTIME]
    return uris


def _split_cri(plugins: dict[str, Table]) -> None:
    """Until version 2 all of CRI was one section."""
    cri = plugins.pop(_CRI, None)
    if cri is None:
        return
    server = _taken(cri, _SERVER_KEYS)
    images = _taken(cri, _IMAGE_KEYS)
    containerd = cri.get("containerd")
    if isinstance(containerd, dict):
        images |= _taken(containerd, _IMAGE_KEYS_OF_CONTAINERD)
        images |= _runtime_platforms(containerd)
    if "sandbox_image" in cri:
        images["pinned_images"] = {"sandbox": cri.pop("sandbox_image")}
    for uri, section in ((_CRI, server), (_CRI_IMAGES, images), (_CRI_RUNTIME, cri)):
        if section:
            plugins[uri] = {**section, **plugins.get(uri, {})}


def _runtime_platforms(containerd: Table) -> Table:
    """What images had to know about runtimes; runtimes' own keys that got new names."""
    runtimes = containerd.get("runtimes")
    platforms: Table = {}
    for name, runtime in runtimes.items() if isinstance(runtimes, dict) else ():
        if not isinstance(runtime, dict):
            continue
        if "sandbox_mode" in runtime:
            runtime["sandboxer"] = runtime.pop("sandbox_mode")
        if runtime.get("snapshotter"):
            platforms[name] = {"snapshotter": runtime["snapshotter"]}
    return {"runtime_platforms": platforms} if platforms else {}


def _move_core_scheduling(plugins: dict[str, Table]) -> None:
    """It became a matter of the shims' environment."""
    task = plugins.get(f"{t.RUNTIME}.task", {})
    if task.pop("sched_core", False) is True:
        shims = plugins.setdefault(f"{t.SHIM}.manager", {})
        env = shims.get("env", [])
        shims["env"] = [*env, "SCHED_CORE=1"] if isinstance(env, list) else env


def _move_servers(lifted: Table, plugins: dict[str, Table]) -> None:
    """Until version 3 the listeners were top-level tables."""
    grpc = _pop_table(lifted, "grpc")
    tcp = {k.removeprefix("tcp_"): v for k, v in grpc.items() if k.startswith("tcp_")}
    metrics = _pop_table(lifted, "metrics")
    histogram = _taken(metrics, ("grpc_histogram",))
    debug = _pop_table(lifted, "debug")
    sections = {
        f"{t.SERVER}.grpc": {k: v for k, v in grpc.items() if not k.startswith("tcp_")},
        f"{t.SERVER}.grpc-tcp": tcp,
        f"{t.SERVER}.ttrpc": _pop_table(lifted, "ttrpc"),
        f"{t.SERVER}.metrics": metrics,
        f"{t.SERVER}.debug": _taken(debug, ("address", "uid", "gid")),
        "io.containerd.metrics.v1.grpc-prometheus": histogram,
    }
    if debug:
        lifted["debug"] = debug
    for uri, section in sections.items():
        if section:
            plugins[uri] = {**section, **plugins.get(uri, {})}


def _taken(table: Table, keys: tuple[str, ...]) -> Table:
    return {key: table.pop(key) for key in keys if key in table}


def _pop_table(tables: Table, key: str) -> Table:
    found = _table(tables, key)
    tables.pop(key, None)
    return found


def _table(tables: Table, key: str) -> Table:
    found = tables.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{key} must be a table, not {found!r}")
    return found


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
