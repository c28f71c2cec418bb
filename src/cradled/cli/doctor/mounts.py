"""Blocking. A program: tries mounts in a mount namespace of its own and prints what works.

A line for each: ``overlay there`` or ``overlay <reason>``. All that it mounts and writes goes away
with its namespace.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator

from cradled.linux import libc, mount

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_PRIVATE = 1 << 18
_MS_REC = 1 << 14
_SYS_MOUNT_SETATTR = 442
_SYS_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_IDMAP = 0x00100000


def main() -> None:
    libc.unshare(_CLONE_NEWNS)
    mount.mount_raw("", "none", "/", _MS_PRIVATE | _MS_REC)
    base = "/tmp"
    mount.mount_raw("tmpfs", "tmpfs", base)
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{base}/{name}")
    words = [f"{name}dir={base}/{name}" for name in ("lower", "upper", "work")]
    _try("overlay", lambda: _overlay(base, words))
    _try("userxattr", lambda: _overlay(base, [*words, "userxattr"]))
    _try("idmap", lambda: _idmapped(f"{base}/lower"))


def _try(name: str, attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except OSError as error:
        print(name, error.strerror or error)
    else:
        print(name, "there")


def _overlay(base: str, words: list[str]) -> None:
    mount.mount("overlay", "overlay", words, f"{base}/merged")
    mount.unmount(f"{base}/merged")


def _idmapped(path: str) -> None:
    """Map ids on a detached copy of the mount that ``path`` lies on."""
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(_user_namespace())
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
        tree = libc.syscall(_SYS_OPEN_TREE, libc.AT_FDCWD, os.fsencode(path), flags)
        stack.callback(os.close, tree)
        fields = (_MOUNT_ATTR_IDMAP, 0, 0, namespace)
        attributes = b"".join(value.to_bytes(8, "little") for value in fields)
        libc.syscall(
            _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, libc.buffer(attributes), len(attributes)
        )


@contextlib.contextmanager
def _user_namespace() -> Iterator[int]:
    """A descriptor of a user namespace with one mapping."""
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise OSError(0, "no user namespace can be made")
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()
