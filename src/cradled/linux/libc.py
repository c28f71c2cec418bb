"""Blocking. Calls into the C library and the kernel that Python's ``os`` does not have.

The one module that imports ctypes, and only at the first call: the shim imports this before it is
forked and may never need it. ``load`` pays for it early, where a process is going to be copied.

Every failure is an OSError with the errno and, where the caller names one, the path.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Numbers above 402 are the same on every architecture Linux runs on (alpha apart).
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_FSPICK = 433
SYS_CLOSE_RANGE = 436
SYS_OPENAT2 = 437
SYS_PIDFD_GETFD = 438
SYS_MOUNT_SETATTR = 442

AT_FDCWD = -100

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

_SCHED_CORE_OF_GROUP = 62, 1, 0, 2, 0  # PR_SCHED_CORE, its command CREATE, of us, PIDTYPE_PGID

_library: Any = None
_long: Any = None
_errno: Any = None


def load() -> Any:
    """The C library; ctypes is imported by the first call."""
    global _library, _long, _errno
    if _library is None:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        library.syscall.restype = ctypes.c_long
        _library, _long, _errno = library, ctypes.c_long, ctypes.get_errno
    return _library


def call(name: str, *args: int | bytes | Any, path: str | bytes | None = None) -> int:
    """Call a function of the C library that returns -1 and sets errno when it fails.

    Arguments are ints (passed as long), bytes, None for a null pointer, or ctypes objects.
    """
    library = load()
    arguments = [_long(a) if isinstance(a, int) else a for a in args]
    result: int = getattr(library, name)(*arguments)
    if result == -1:
        error = _errno()
        if path is None:
            raise OSError(error, f"{name}: {os.strerror(error)}")
        raise OSError(error, os.strerror(error), path)
    return result


def syscall(number: int, *args: int | bytes | Any, path: str | bytes | None = None) -> int:
    """Call the kernel by number; arguments and failure as for ``call``."""
    return call("syscall", number, *args, path=path)


def buffer(data: bytes) -> Any:
    """Writable memory with these bytes, for structures that the kernel reads or fills."""
    import ctypes

    return ctypes.create_string_buffer(data, len(data))


def prctl(option: int, value: int = 0) -> int:
    """``prctl(option, value, 0, 0, 0)``.

    Not by way of ``call``: each shim does this once, and what has not run in it yet costs memory.
    """
    result: int = load().prctl(option, value, 0, 0, 0)
    if result == -1:
        error = _errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
    return result


def own_core() -> None:
    """Let no process but those of this process group, and of its descendants, run on a core while
    one of them does: on hosts whose processors leak from one thread of a core to the other.

    Raises OSError where the kernel cannot do that.
    """
    try:
        call("prctl", *_SCHED_CORE_OF_GROUP)
    except OSError as error:
        raise OSError(error.errno, f"enable sched core support: {error.strerror}") from None


def unshare(flags: int) -> None:
    """Leave the namespaces (CLONE_NEW*) or shared state (CLONE_FS) named by ``flags``."""
    call("unshare", flags)


def setns(fd: int, kind: int = 0) -> None:
    """Enter the namespace that ``fd`` refers to."""
    call("setns", fd, kind)


def syncfs(fd: int) -> None:
    """Write out all of the file system that ``fd`` lies on; returns when it is durable."""
    call("syncfs", fd)


def rename_exclusive(source: str, target: str) -> None:
    """Rename, unless ``target`` exists: FileExistsError."""
    names = os.fsencode(source), os.fsencode(target)
    call("renameat2", AT_FDCWD, names[0], AT_FDCWD, names[1], 1, path=target)  # RENAME_NOREPLACE


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write out these bytes; a later fsync has less to wait for."""
    call("sync_file_range", fd, offset, length, 2)  # SYNC_FILE_RANGE_WRITE


def openat2(directory: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open below a directory under the rules of ``resolve`` (RESOLVE_*)."""
    how = b"".join(value.to_bytes(8, "little") for value in (flags | os.O_CLOEXEC, mode, resolve))
    name = os.fsencode(path)
    return syscall(SYS_OPENAT2, directory, name, buffer(how), len(how), path=path)
