"""Blocking. The bundle directory, as far as the shim writes and reads it.

options.json   the runtime options, zero values left out      \\  for the ``delete`` program,
runtime        the name of the runtime                        /   which starts with nothing else
address        unix://<path>, where the shim of a foreign daemon listens
init.pid       by the runtime
exit.json      {"pid":1,"exit_status":0,"exited_at":<ns>}: the end of init, before it is told
rootfs/        where the root file system is mounted
"""

from __future__ import annotations

import errno
import os

from cradled.errors import Error
from cradled.linux import cgroup, fs, mount, plain_json
from cradled.shim.bootstrap import GROUP_ANNOTATIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cradled.shim.messages import Mount, Options

_DIGITS = 7  # of the largest pid


def save_options(bundle: str, options: Options, binary: str) -> None:
    """Write ``options.json`` and ``runtime``."""
    values = [(name, getattr(options, name)) for name, _, _ in options.FIELDS.values()]
    pairs = ",".join(f"{_json(name)}:{_json(value)}" for name, value in values if value)
    write(f"{bundle}/options.json", f"{{{pairs}}}", 0o600)
    write(f"{bundle}/runtime", binary, 0o600)


def load_options(bundle: str, options: Options) -> Options:
    """Fill in what ``options.json`` and ``runtime`` say; files that are missing say nothing."""
    values = plain_json.load(f"{bundle}/options.json")
    for name, _, _ in options.FIELDS.values():
        if type(values.get(name)) is type(getattr(options, name)):
            setattr(options, name, values[name])
    options.binary_name = _read(f"{bundle}/runtime").strip() or options.binary_name
    return options


def save_exit(bundle: str, pid: int, status: int, at: int) -> None:
    """Write ``exit.json``, whole or not at all."""
    text = f'{{"pid":{pid},"exit_status":{status},"exited_at":{at}}}'
    try:  # noqa: SIM105 (contextlib is not worth its import)
        fs.atomic_write(f"{bundle}/exit.json", text.encode(), sync=False)
    except OSError:
        pass  # the bundle is gone: nobody will come and ask


def load_exit(bundle: str) -> tuple[int, int, int] | None:
    """(pid, status, time) of an init whose end was seen; None otherwise."""
    values = plain_json.load(f"{bundle}/exit.json")
    end = values.get("pid"), values.get("exit_status"), values.get("exited_at")
    return end if all(type(value) is int for value in end) else None  # type: ignore[return-value]


def read_address(bundle: str) -> str:
    """The path of the shim's socket; empty where ``address`` does not say it."""
    return _read(f"{bundle}/address").removeprefix("unix://")


def read_pid(path: str) -> int:
    """The number in a pid file. Raises Error."""
    try:
        text = cgroup.read(path).strip()
    except OSError as error:
        raise Error(f"open {path}: {(error.strerror or '').lower()}") from None
    pid = int(text) if text.isdecimal() and len(text) <= _DIGITS else 0
    if not pid:
        raise Error(f"{text[:80]!a} is no pid")
    return pid


def mount_rootfs(bundle: str, mounts: Sequence[Mount]) -> None:
    """Make the mounts below ``rootfs``. Raises Error; nothing stays mounted then."""
    if not mounts:
        return
    root = f"{bundle}/rootfs"
    try:
        os.makedirs(root, 0o711, exist_ok=True)
        mount.mount_all([(x.type, x.source, x.options, x.target) for x in mounts], root)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        raise Error(f"failed to mount rootfs component: {where}{reason}") from None
    except ValueError as error:
        raise Error(f"failed to mount rootfs component: {error}") from None


def unmount_rootfs(bundle: str, mounts: Sequence[Mount]) -> None:
    """Undo the mounts; one that is in use goes when it is free."""
    root = f"{bundle}/rootfs"
    if any(x.target for x in mounts):
        mount.unmount_below(root, detach=True)
    elif mounts:
        try:
            mount.unmount_all(root)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            mount.unmount_all(root, detach=True)


def group_annotations(bundle: str) -> dict[str, str]:
    """The annotations of the container's spec, those that say which shim it belongs to at least.

    A spec that does not name one of these is not parsed.
    """
    spec = _read(f"{bundle}/config.json")
    if not any(name in spec for name in GROUP_ANNOTATIONS):
        return {}
    found = plain_json.parse(spec).get("annotations")
    if type(found) is not dict:
        return {}
    return {name: found[name] for name in GROUP_ANNOTATIONS if type(found.get(name)) is str}


def write(path: str, text: str, mode: int) -> None:
    """Write a file, not atomically."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        fs.write_all(fd, text.encode())
    finally:
        os.close(fd)


def point(path: str, target: str) -> None:
    """Have a symbolic link lead to ``target``, wherever it led before."""
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.unlink(path)
    except FileNotFoundError:
        pass
    os.symlink(target, path)


def _read(path: str) -> str:
    try:
        return cgroup.read(path)
    except OSError:
        return ""


def _json(value: str | int | bool) -> str:
    """A value as JSON, without the ``json`` module, whose import pays for regular expressions."""
    if isinstance(value, str):
        plain = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " else f"\\u{ord(c):04x}" for c in plain) + '"'
    return str(value).lower()
