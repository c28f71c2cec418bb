"""Pure. Capabilities of Linux by name and number (capability.h)."""

from __future__ import annotations

from collections.abc import Iterable

from cradled.errors import InvalidArgument

_NAMES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
ALL = tuple(f"CAP_{name}" for name in _NAMES)

# What a container gets unless asked otherwise: enough for package managers and servers that drop
# root themselves, nothing that reaches outside its namespaces.
DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)


def from_mask(mask: int) -> tuple[str, ...]:
    """Names of the bits of a mask as in ``/proc/<pid>/status``; unknown bits are left out."""
    return tuple(name for bit, name in enumerate(ALL) if mask >> bit & 1)


def normalise(names: Iterable[str]) -> tuple[str, ...]:
    """``net_admin`` -> ``CAP_NET_ADMIN``; raises InvalidArgument for a name nobody knows."""
    full = []
    for name in names:
        upper = name.upper()
        upper = upper if upper.startswith("CAP_") else f"CAP_{upper}"
        if upper not in ALL:
            raise InvalidArgument(f'capability "{name}"')
        full.append(upper)
    return tuple(full)
