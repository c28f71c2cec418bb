"""Blocking. Capabilities of this process (capabilities(7)): which are there, and giving them up."""

from __future__ import annotations

from cradled.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CHOWN = 0
DAC_OVERRIDE = 1
FOWNER = 3
FSETID = 4
SYS_ADMIN = 21
MKNOD = 27
SETFCAP = 31

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_VERSION_3 = 0x20080522


def effective() -> int:
    """The effective set, a bit each."""
    return _status("CapEff")


def keep_only(wanted: Iterable[int]) -> None:
    """Give up every capability but these, for good: executing a program brings none back."""
    keep = sum(1 << number for number in wanted)
    last = _last_known()
    if effective() >> 8 & 1:  # CAP_SETPCAP, without which the bounding set stays as it is
        for number in range(last + 1):
            if not keep >> number & 1:
                libc.prctl(_PR_CAPBSET_DROP, number)
    keep &= _status("CapPrm")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    words = [keep & 0xFFFF_FFFF, keep & 0xFFFF_FFFF, 0, keep >> 32, keep >> 32, 0]
    header = _VERSION_3.to_bytes(4, "little") + bytes(4)
    data = b"".join(word.to_bytes(4, "little") for word in words)
    libc.call("capset", libc.buffer(header), libc.buffer(data))


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.partition(":")[2], 16)
    return 0


def _last_known() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())
