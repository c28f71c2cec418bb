"""Pure. Runtime specs: the default for a container, and options that change it.

A spec is the plain dict that becomes ``config.json``. ``build`` starts from ``default`` and
applies options in order; an option is a function that changes the dict. What a client sends is
never read by this module: specs made elsewhere are passed on byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cradled.errors import InvalidArgument
from cradled.oci import capabilities as caps
from cradled.oci import seccomp as seccomp_profile
from cradled.oci.image import RunConfig
from cradled.oci.users import User

Spec = dict[str, Any]
Option = Callable[[Spec], None]

TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RESOURCES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
PROCESS_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
# The lowest that has all we use: old runtimes refuse versions they don't know.
OCI_VERSION = "1.0.2"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
_NOFILE = 1024
_CPU_PERIOD = 100_000
_MIN_MEMORY = 6 << 20  # below, runc itself does not get through its start
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", re.IGNORECASE).fullmatch
_DEVICE_CGROUP_ALL = {"allow": True, "access": "rwm"}


def default(namespace: str, id: str) -> Spec:
    """What every container starts from: confined, with ``/proc``, ``/dev`` and ``/sys``."""
    granted = list(caps.DEFAULT)
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [],
            "env": [DEFAULT_PATH],
            "cwd": "/",
            "capabilities": {"bounding": granted, "effective": granted, "permitted": granted},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": _NOFILE, "soft": _NOFILE}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": _default_mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": f"/{namespace}/{id}",
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": list(_MASKED_PATHS),
            "readonlyPaths": list(_READONLY_PATHS),
        },
    }


def build(namespace: str, id: str, *options: Option) -> Spec:
    """The default spec with options applied in order."""
    spec = default(namespace, id)
    for option in options:
        option(spec)
    return spec


def _default_mounts() -> list[dict[str, Any]]:
    def mount(destination: str, type: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": destination, "type": type, "source": source, "options": [*options]}

    safe = ("nosuid", "noexec", "nodev")
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return [
        mount("/proc", "proc", "proc", *safe),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", *pts),
        mount("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", "size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", *safe),
        mount("/sys", "sysfs", "sysfs", *safe, "ro"),
        mount("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    ]


def args(arguments: Sequence[str]) -> Option:
    """The command line, whole."""

    def option(spec: Spec) -> None:
        spec["process"]["args"] = list(arguments)

    return option


def image(config: RunConfig, command: Sequence[str] = (), entrypoint: str = "") -> Option:
    """Environment, directory and command as the image wants them.

    ``command`` takes the place of the image's ``Cmd``; ``entrypoint`` that of ``Entrypoint``, and
    then the image's ``Cmd`` does not count. Raises InvalidArgument when nothing is left to run.
    """
    first = [entrypoint] if entrypoint else config.entrypoint or []
    rest = list(command) or ([] if entrypoint else config.cmd or [])

    def option(spec: Spec) -> None:
        if not first and not rest:
            raise InvalidArgument("the image names no command; give one")
        args([*first, *rest])(spec)
        env(config.env or ())(spec)
        if config.working_dir:
            workdir(config.working_dir)(spec)

    return option


def env(variables: Iterable[str]) -> Option:
    """Set ``NAME=value``; a later one replaces an earlier, a bare ``NAME`` removes it."""

    def option(spec: Spec) -> None:
        process = spec["process"]
        merged = dict.fromkeys(process["env"])  # keeps order, and odd entries of images
        for variable in variables:
            name, equals, _ = variable.partition("=")
            for old in [entry for entry in merged if entry.partition("=")[0] == name]:
                del merged[old]
            if equals:
                merged[variable] = None
        process["env"] = list(merged)

    return option


def user(who: User) -> Option:
    def option(spec: Spec) -> None:
        numbers: dict[str, Any] = {"uid": who.uid, "gid": who.gid}
        if who.groups:
            numbers["additionalGids"] = list(who.groups)
        spec["process"]["user"] = numbers

    return option


def workdir(path: str) -> Option:
    """Raises InvalidArgument for a relative path."""
    if not path.startswith("/"):
        raise InvalidArgument(f'working directory "{path}": must be absolute')

    def option(spec: Spec) -> None:
        spec["process"]["cwd"] = path

    return option


def hostname(name: str) -> Option:
    def option(spec: Spec) -> None:
        spec["hostname"] = name

    return option


def tty() -> Option:
    def option(spec: Spec) -> None:
        process = spec["process"]
        process["terminal"] = True
        if not any(entry.startswith("TERM=") for entry in process["env"]):
            process["env"].append("TERM=xterm")

    return option


def read_only() -> Option:
    """The root file system cannot be written; mounts on it can."""

    def option(spec: Spec) -> None:
        spec["root"]["readonly"] = True

    return option


def mount(
    destination: str, source: str, type: str = "bind", options: Sequence[str] = ("rbind", "rw")
) -> Option:
    """Raises InvalidArgument unless ``destination`` is absolute."""
    if not destination.startswith("/"):
        raise InvalidArgument(f'mount on "{destination}": must be an absolute path')

    def option(spec: Spec) -> None:
        spec["mounts"].append(
            {
                "destination": destination,
                "type": type,
                "source": source,
                "options": list(options),
            }
        )

    return option


def volume(text: str) -> Option:
    """``/source:/destination[:ro|rw]``, bound with what is mounted below it."""
    parts = text.split(":")
    access = parts[2] if len(parts) == 3 else "rw"
    if len(parts) not in (2, 3) or not all(parts) or access not in ("ro", "rw"):
        raise InvalidArgument(f'volume "{text}": want /source:/destination[:ro]')
    if not parts[0].startswith("/"):
        raise InvalidArgument(f'volume "{text}": the source must be an absolute path')
    return mount(parts[1], parts[0], options=("rbind", "rprivate", access))


def memory(limit: int) -> Option:
    """Bytes of memory the container may use. Raises InvalidArgument below 6 MiB."""
    if limit < _MIN_MEMORY:
        raise InvalidArgument(f"memory limit of {limit} bytes: at least {_MIN_MEMORY} are needed")

    def option(spec: Spec) -> None:
        spec["linux"]["resources"]["memory"] = {"limit": limit}

    return option


def cpus(count: float) -> Option:
    """Share of CPU time, in processors. Raises InvalidArgument below 0.01."""
    if not 0.01 <= count < float("inf"):
        raise InvalidArgument(f"{count} CPUs: at least 0.01")

    def option(spec: Spec) -> None:
        quota = round(count * _CPU_PERIOD)
        spec["linux"]["resources"]["cpu"] = {"quota": quota, "period": _CPU_PERIOD}

    return option


def pids(limit: int) -> Option:
    """How many processes and threads there may be; 0: as many as they like.

    Raises InvalidArgument below 0.
    """
    if limit < 0:
        raise InvalidArgument(f"{limit} processes")

    def option(spec: Spec) -> None:
        spec["linux"]["resources"]["pids"] = {"limit": limit or -1}

    return option


def host_network() -> Option:
    """Share the network namespace of the host."""

    def option(spec: Spec) -> None:
        linux = spec["linux"]
        linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"]

    return option


def user_namespace(uidmap: str, gidmap: str) -> Option:
    """Have users and groups of its own: ``inside:outside:length[,...]`` for each."""
    users, groups = mappings(uidmap), mappings(gidmap)

    def option(spec: Spec) -> None:
        linux = spec["linux"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"], linux["gidMappings"] = users, groups

    return option


def mappings(text: str) -> list[dict[str, int]]:
    """Ranges of IDs as a spec has them, of ``inside:outside:length[,...]``.

    Raises InvalidArgument.
    """
    keys = ("containerID", "hostID", "size")
    parts = [part.split(":") for part in text.split(",")]
    for part in parts:
        if len(part) != len(keys) or not all(x.isascii() and x.isdigit() for x in part):
            raise InvalidArgument(f'mapping of IDs "{text}": not INSIDE:OUTSIDE:LENGTH')
    return [dict(zip(keys, map(int, part), strict=True)) for part in parts]


def capabilities(names: Iterable[str]) -> Option:
    """Have just these."""
    granted = list(caps.normalise(names))

    def option(spec: Spec) -> None:
        spec["process"]["capabilities"] = {
            kind: granted for kind in ("bounding", "effective", "permitted")
        }

    return option


def seccomp(architecture: str, kernel: tuple[int, int]) -> Option:
    """The default profile. Comes last: it depends on the capabilities."""

    def option(spec: Spec) -> None:
        bounding = spec["process"]["capabilities"]["bounding"]
        spec["linux"]["seccomp"] = seccomp_profile.profile(bounding, architecture, kernel)

    return option


def privileged(
    available: Iterable[str] = caps.ALL, devices: Sequence[Mapping[str, Any]] = ()
) -> Option:
    """As good as root on the host: all capabilities and devices, nothing masked, no seccomp.

    ``available`` are the capabilities that can be given at all, ``devices`` the nodes of the
    host's ``/dev`` as objects of ``linux.devices``.
    """

    def option(spec: Spec) -> None:
        capabilities(available)(spec)
        spec["process"]["noNewPrivileges"] = False
        linux = spec["linux"]
        for confinement in ("maskedPaths", "readonlyPaths", "seccomp"):
            linux.pop(confinement, None)
        linux["devices"] = [dict(device) for device in devices]
        linux["resources"]["devices"] = [dict(_DEVICE_CGROUP_ALL)]
        for entry in spec["mounts"]:
            if entry["type"] in ("sysfs", "cgroup"):
                entry["options"] = [o if o != "ro" else "rw" for o in entry["options"]]

    return option


def parse_size(text: str) -> int:
    """``512m``, ``1.5g``, ``64MiB``, ``4096``: bytes. Raises InvalidArgument."""
    match = _SIZE(text.strip())
    if match is None:
        raise InvalidArgument(f'size "{text}": want a number and one of k, m, g, t')
    size = float(match[1]) * (1 << 10 * " kmgt".index(match[2].lower() or " "))
    if size >= 1 << 63:
        raise InvalidArgument(f'size "{text}": too large')
    return int(size)
