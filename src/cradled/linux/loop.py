"""Blocking. Loop devices: a file as a block device for as long as something is mounted from it.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_READ_ONLY = 1
_AUTOCLEAR = 4
# struct loop_config: fd, block size, struct loop_info64 (232 bytes), eight reserved words.
_INFO_FLAGS = 8 * 5 + 4 * 3  # offset of lo_flags in loop_info64
_CONFIG_SIZE = 8 + 232 + 64
_TRIES = 100


def attach(path: str, *, read_only: bool = False) -> tuple[str, int]:
    """The path of a new loop device over a file, and a descriptor of it for the caller to close.

    The device goes away by itself once it is neither open nor mounted: mount it, then close.
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(path, mode | os.O_CLOEXEC)
    try:
        return _configure(backing, read_only)
    finally:
        os.close(backing)


def is_attached(path: str) -> bool:
    """Whether some loop device has the file."""
    path = os.path.realpath(path)
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                with open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
                    if os.fsdecode(file.read()).rstrip("\n") == path:
                        return True
            except FileNotFoundError:  # it has none
                continue
    return False


def _configure(backing: int, read_only: bool) -> tuple[str, int]:
    config = bytearray(_CONFIG_SIZE)
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    struct.pack_into("=I", config, 0, backing)
    struct.pack_into("=I", config, 8 + _INFO_FLAGS, flags)
    for _ in range(_TRIES):
        device = f"/dev/loop{_free_number()}"
        fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:  # busy: another process was quicker to take it
                error.filename = device
                raise
        else:
            return device, fd
    raise OSError(errno.EBUSY, "no free loop device")


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
