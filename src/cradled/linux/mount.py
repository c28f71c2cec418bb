"""Blocking. Mounts as clients write them (type, source, option words), made and undone.

Parsing is pure; the rest calls the kernel. Used by the shim, so it imports next to nothing.

An overlay's option text may be longer than the one page that mount(2) takes. Then the mount is
made by the newer calls, a layer at a time (Linux 6.8), and on older kernels with the layers named
relative to a descriptor of the directory they share.
"""

from __future__ import annotations

import errno
import os

from cradled.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Plan = tuple[str, str, Sequence[str], str]
    """Type, source, options, and the path below the target root (mostly empty)."""

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# Word: (flags it clears, flags it sets).
_WORDS = {
    "defaults": (0, 0),
    "ro": (0, MS_RDONLY),
    "rw": (MS_RDONLY, 0),
    "nosuid": (0, MS_NOSUID),
    "suid": (MS_NOSUID, 0),
    "nodev": (0, MS_NODEV),
    "dev": (MS_NODEV, 0),
    "noexec": (0, MS_NOEXEC),
    "exec": (MS_NOEXEC, 0),
    "sync": (0, MS_SYNCHRONOUS),
    "async": (MS_SYNCHRONOUS, 0),
    "dirsync": (0, MS_DIRSYNC),
    "remount": (0, MS_REMOUNT),
    "mand": (0, MS_MANDLOCK),
    "nomand": (MS_MANDLOCK, 0),
    "noatime": (MS_STRICTATIME | MS_RELATIME, MS_NOATIME),
    "atime": (MS_NOATIME, 0),
    "nodiratime": (0, MS_NODIRATIME),
    "diratime": (MS_NODIRATIME, 0),
    "relatime": (MS_NOATIME | MS_STRICTATIME, MS_RELATIME),
    "norelatime": (MS_RELATIME, 0),
    "strictatime": (MS_NOATIME | MS_RELATIME, MS_STRICTATIME),
    "nostrictatime": (MS_STRICTATIME, 0),
    "lazytime": (0, MS_LAZYTIME),
    "nosymfollow": (0, MS_NOSYMFOLLOW),
    "bind": (0, MS_BIND),
    "rbind": (0, MS_BIND | MS_REC),
    "silent": (0, MS_SILENT),
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
_PER_MOUNT = (
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME
    | MS_RELATIME | MS_STRICTATIME | MS_NOSYMFOLLOW
)  # fmt: skip
# statvfs says which of these a bind mount took over from its source.
_INHERITED = (
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME
)  # fmt: skip
_ST_RELATIME = 0x1000

_MAX_TEXT = os.sysconf("SC_PAGE_SIZE") - 512
_MAX_VALUE = 255  # of one value given to fsconfig

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
# Flags of the mount as fsmount takes them; those of the file system go to fsconfig as words.
_ATTRIBUTES = {
    MS_RDONLY: 0x1,
    MS_NOSUID: 0x2,
    MS_NODEV: 0x4,
    MS_NOEXEC: 0x8,
    MS_NOATIME: 0x10,
    MS_STRICTATIME: 0x20,
    MS_NODIRATIME: 0x80,
    MS_NOSYMFOLLOW: 0x200000,
}


class Options:
    """Option words, sorted: what is a flag, what goes to the file system, what is ours to do."""

    __slots__ = ("cleared", "data", "flags", "gidmap", "loop", "propagation", "uidmap")

    def __init__(self) -> None:
        self.flags = 0
        self.cleared = 0
        self.propagation = 0
        self.data: list[str] = []
        self.loop = False
        self.uidmap = ""
        self.gidmap = ""


def parse_options(words: Iterable[str]) -> Options:
    """Sort option words. Raises ValueError for an ``X-containerd.`` word nobody has handled."""
    options = Options()
    for word in words:
        if word in _WORDS:
            cleared, flags = _WORDS[word]
            options.flags = options.flags & ~cleared | flags
            options.cleared = (options.cleared | cleared) & ~flags
        elif word in _PROPAGATION:
            options.propagation |= _PROPAGATION[word]
        elif word == "loop":
            options.loop = True
        elif word.startswith("uidmap="):
            options.uidmap = word.removeprefix("uidmap=")
        elif word.startswith("gidmap="):
            options.gidmap = word.removeprefix("gidmap=")
        elif word.startswith("X-containerd."):
            raise ValueError(f"unhandled mount option {word}")
        elif word:
            options.data.append(word)
    return options


def mount(type: str, source: str, words: Iterable[str], target: str) -> None:
    """Mount on ``target``, which exists. Raises OSError with the target's path, ValueError."""
    if type.startswith("fuse"):
        from cradled.linux import mounthelper

        if type.startswith(mounthelper.TYPES):
            mounthelper.mount(type, source, words, target)
            return
    options = parse_options(words)
    if options.uidmap or options.gidmap:
        _mount_mapped(type, source, options, target)
    elif options.loop:
        from cradled.linux import loop

        device, fd = loop.attach(source, read_only=bool(options.flags & MS_RDONLY))
        try:
            _mount(type, device, options, target)
        finally:
            os.close(fd)
    else:
        _mount(type, source, options, target)
    if options.propagation:
        mount_raw("", "", target, options.propagation)


def mount_all(plans: Iterable[Plan], root: str) -> None:
    """Make the mounts in order below ``root``; when one fails, those made are undone."""
    done: list[str] = []
    try:
        for type_, source, words, below in plans:
            target = inside(root, below) if below else root
            mount(type_, source, words, target)
            done.append(target)
    except BaseException:
        for target in reversed(done):
            unmount(target, detach=True)
        raise


def inside(root: str, path: str) -> str:
    """``path`` resolved below ``root``, whatever symbolic links lie on it; it must exist."""
    flags = os.O_PATH
    rules = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = libc.openat2(top, path.lstrip("/") or ".", flags, resolve=rules)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        os.close(top)


def mount_raw(type: str, source: str, target: str, flags: int = 0, data: str = "") -> None:
    """mount(2) as it is."""
    arguments = [os.fsencode(text) if text else None for text in (source, target, type)]
    libc.call("mount", *arguments, flags, os.fsencode(data) if data else None, path=target)


def unmount(target: str, *, detach: bool = False, force: bool = False) -> None:
    """Undo the topmost mount on ``target``; raises OSError, EINVAL where nothing is mounted."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0) | (MNT_FORCE if force else 0)
    libc.call("umount2", os.fsencode(target), flags, path=target)


def unmount_all(target: str, *, detach: bool = False) -> None:
    """Undo every mount stacked on ``target``; nothing mounted, or no such path, is fine."""
    while True:
        try:
            unmount(target, detach=detach)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise


def unmount_below(root: str, *, detach: bool = False) -> None:
    """Undo every mount on ``root`` and below it, the last one first."""
    prefix = root.rstrip("/") + "/"
    targets = [m.target for m in mounts() if m.target == root or m.target.startswith(prefix)]
    for target in reversed(targets):
        unmount_all(target, detach=detach)


class MountInfo:
    """One line of mountinfo."""

    __slots__ = ("id", "options", "parent", "root", "source", "super_options", "target", "type")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        rest = fields[fields.index("-", 6) + 1 :]
        self.id = int(fields[0])
        self.parent = int(fields[1])
        self.root = _unescape(fields[3])
        self.target = _unescape(fields[4])
        self.options = fields[5].split(",")
        self.type = rest[0]
        self.source = _unescape(rest[1])
        self.super_options = rest[2].split(",") if len(rest) > 2 else []


def mounts() -> Iterator[MountInfo]:
    """The mounts of this process's namespace, in the order they were made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    return (MountInfo(line) for line in text.split("\n") if line)


def is_mounted(target: str) -> bool:
    """Whether something is mounted exactly there."""
    return any(entry.target == target for entry in mounts())


def _unescape(text: str) -> str:
    """mountinfo writes blank, tab, newline and backslash as a backslash and three octal digits."""
    if "\\" not in text:
        return text
    first, *others = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)


def _mount(type_: str, source: str, options: Options, target: str) -> None:
    flags = options.flags
    data = ",".join(options.data)
    if len(os.fsencode(data)) >= _MAX_TEXT and type_ == "overlay":
        _mount_long_overlay(source, options, target)
        return
    mount_raw(type_, source, target, flags, data)
    if flags & MS_BIND and not flags & MS_REMOUNT:
        _restrict(options, target)


def _restrict(options: Options, target: str) -> None:
    """Give a bind mount its flags, which the kernel ignores while it binds."""
    flags = options.flags
    if not flags & _PER_MOUNT:
        return
    kept = os.statvfs(target).f_flag  # what the source's mount forbids stays forbidden
    inherited = kept & _INHERITED | (MS_RELATIME if kept & _ST_RELATIME else 0)
    if flags & (MS_NOATIME | MS_STRICTATIME | MS_RELATIME):
        inherited &= ~(MS_NOATIME | MS_RELATIME)
    mount_raw("", "", target, flags | MS_REMOUNT | inherited & ~options.cleared)


def _mount_mapped(type_: str, source: str, options: Options, target: str) -> None:
    """Mount with the owners of files mapped: a bind mount, or the lower layers of an overlay."""
    from cradled.linux import idmap

    namespace = idmap.user_namespace(options.uidmap, options.gidmap)
    try:
        if options.flags & MS_BIND:
            whole = bool(options.flags & MS_REC)
            _attach(idmap.mapped(source, namespace, recursive=whole), target)
            _restrict(options, target)
        elif type_ == "overlay":
            _mount_mapped_overlay(source, options, namespace, target)
        else:
            raise OSError(errno.EOPNOTSUPP, f"{type_} cannot be mounted with mapped IDs", target)
    finally:
        os.close(namespace)


def _mount_mapped_overlay(source: str, options: Options, namespace: int, target: str) -> None:
    """An overlay takes its layers by path, from mounts that are somewhere: they are stacked on the
    target for so long. So whoever dies meanwhile leaves nothing elsewhere."""
    from cradled.linux import idmap

    layers: list[int] = []
    stacked = 0
    try:
        for layer in _take_lowers(options):
            layers.append(idmap.mapped(layer, namespace))
            idmap.attach(layers[-1], target)
            stacked += 1
        options.data.append("lowerdir=" + ":".join(f"/proc/self/fd/{fd}" for fd in layers))
        _mount("overlay", source, options, target)
        stacked += 1
        made = idmap.copied(target)
    finally:
        for _ in range(stacked):
            unmount(target, detach=True)
        for fd in layers:
            os.close(fd)
    _attach(made, target)


def _attach(fd: int, target: str) -> None:
    from cradled.linux import idmap

    try:
        idmap.attach(fd, target)
    finally:
        os.close(fd)


def _take_lowers(options: Options) -> list[str]:
    """The layers that an overlay's options name; the option is taken out."""
    for word in options.data:
        if word.startswith("lowerdir="):
            options.data.remove(word)
            return split_layers(word.removeprefix("lowerdir="))
    return []


def _mount_long_overlay(source: str, options: Options, target: str) -> None:
    lowers = _take_lowers(options)
    values = options.data
    opened: list[int] = []
    try:
        try:
            _mount_by_layers(source, values, lowers, options.flags, target, opened)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
                raise
            _mount_by_shared_directory(source, values, lowers, options.flags, target, opened)
    finally:
        for fd in opened:
            os.close(fd)


def _mount_by_layers(
    source: str,
    values: Sequence[str],
    lowers: Sequence[str],
    flags: int,
    target: str,
    opened: list[int],
) -> None:
    def string(fd: int, key: str, value: str) -> None:
        if len(os.fsencode(value)) > _MAX_VALUE:
            opened.append(os.open(value, os.O_PATH | os.O_CLOEXEC))
            value = f"/proc/self/fd/{opened[-1]}"
        arguments = (_FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)
        libc.syscall(libc.SYS_FSCONFIG, fd, *arguments, path=value)

    fs = libc.syscall(libc.SYS_FSOPEN, b"overlay", _FSOPEN_CLOEXEC, path=target)
    opened.append(fs)
    string(fs, "source", source or "overlay")
    for layer in lowers:
        string(fs, "lowerdir+", layer)
    for word in values:
        key, equals, value = word.partition("=")
        if equals:
            string(fs, key, value)
        else:
            libc.syscall(libc.SYS_FSCONFIG, fs, _FSCONFIG_SET_FLAG, key.encode(), None, 0)
    libc.syscall(libc.SYS_FSCONFIG, fs, _FSCONFIG_CMD_CREATE, None, None, 0, path=target)
    attributes = sum(bit for flag, bit in _ATTRIBUTES.items() if flags & flag)
    made = libc.syscall(libc.SYS_FSMOUNT, fs, _FSMOUNT_CLOEXEC, attributes, path=target)
    opened.append(made)
    where = (made, b"", libc.AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    libc.syscall(libc.SYS_MOVE_MOUNT, *where, path=target)


def _mount_by_shared_directory(
    source: str,
    values: Sequence[str],
    lowers: Sequence[str],
    flags: int,
    target: str,
    opened: list[int],
) -> None:
    shared = os.path.commonpath(lowers)
    opened.append(os.open(shared, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    base = f"/proc/self/fd/{opened[-1]}"
    names = (base + layer.removeprefix(shared) for layer in lowers)
    text = ":".join(name.replace("\\", "\\\\").replace(":", "\\:") for name in names)
    mount_raw("overlay", source, target, flags, ",".join([*values, "lowerdir=" + text]))


def split_layers(text: str) -> list[str]:
    """The directories of a ``lowerdir`` value; a backslash makes the next character plain."""
    layers, current, escaped = [], "", False
    for char in text:
        if escaped or char not in "\\:":
            current += char
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            layers.append(current)
            current = ""
    layers.append(current)
    return layers
