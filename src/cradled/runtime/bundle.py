"""Blocking. The bundle: a task's directory under the state, from before its shim to after it.

    <state>/<namespace>/<id>/     0700; with a user namespace 0710 and its root's group
        config.json               the spec, byte for byte
        rootfs/                   0711, where the shim mounts
        work -> <root>/<namespace>/<id>/
        log                       FIFO; what the shim writes to stderr, read by the daemon
        shim-binary-path          which program cleans up when the shim is gone
        bootstrap.json            where the shim serves; written before the shim is started where we
                                  choose the address, so that a shim is never out of reach
        sandbox                   the sandbox whose shim it is, if any
        <exec>.pid                by the OCI runtime; until its exit is told, if the shim is ours
        exit.json, options.json, runtime, init.pid, ...   by the shim

A bundle that is being removed is renamed to ``.<id>.<number>`` first; one left like this by a
crash is removed at the next start. Nothing is synced: what is under the state does not outlive a
reboot.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from cradled import failpoints
from cradled.errors import AlreadyExists, Error
from cradled.linux import fs, mount, plain_json
from cradled.linux.tree import remove_tree
from cradled.runtime import bootstrap
from cradled.runtime.bootstrap import Bootstrap

_removals = itertools.count()

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")


class Exec(NamedTuple):
    """A process that was started beside init; whether it ``lives``."""

    id: str
    pid: int
    lives: bool


@dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle by its place; ``path`` and ``work`` need not exist."""

    path: str
    work: str
    namespace: str
    id: str

    @property
    def rootfs(self) -> str:
        return f"{self.path}/rootfs"

    @property
    def log(self) -> str:
        return f"{self.path}/log"

    @property
    def checkpoint(self) -> str:
        """Where a checkpoint is unpacked to that the task starts from."""
        return f"{self.work}/checkpoint"

    def make_directory(self) -> str:
        """A new directory for whatever the task needs, on the disk; it goes with the bundle."""
        path = f"{self.work}/{os.urandom(8).hex()}"
        os.mkdir(path, 0o700)
        return path

    def create(self, spec: bytes, shim: str, sandbox: str = "") -> None:
        """Make it with all that the daemon puts in. Raises AlreadyExists; leaves nothing then."""
        os.makedirs(os.path.dirname(self.path), 0o711, exist_ok=True)
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            raise AlreadyExists(f"bundle {self.path}") from None
        failpoints.hit("runtime.create.directory")
        try:
            self._fill(spec, shim, sandbox)
        except BaseException:
            self.remove()
            raise

    def _fill(self, spec: bytes, shim: str, sandbox: str) -> None:
        group = _root_group(spec)
        if group:
            os.chown(self.path, -1, group)
            os.chmod(self.path, 0o710)
        os.makedirs(os.path.dirname(self.work), 0o711, exist_ok=True)
        remove_tree(self.work)
        os.mkdir(self.work, 0o711)
        failpoints.hit("runtime.create.work")
        os.mkdir(self.rootfs, 0o711)
        os.symlink(self.work, f"{self.path}/work")
        os.mkfifo(self.log, 0o700)
        _write(f"{self.path}/config.json", spec, 0o666)
        _write(f"{self.path}/shim-binary-path", shim.encode(), 0o600)
        if sandbox:
            _write(f"{self.path}/sandbox", sandbox.encode(), 0o600)

    def save_bootstrap(self, result: Bootstrap) -> None:
        """Keep where the shim serves: whole or not at all."""
        fs.atomic_write(f"{self.path}/bootstrap.json", result.to_json(), sync=False)

    def load_bootstrap(self) -> Bootstrap | None:
        """Where the shim serves; None when no shim was started. Raises Error for a damaged file.

        The file of older daemons (``address``) is understood, and replaced.
        """
        data = _read(f"{self.path}/bootstrap.json")
        if data is not None:
            return bootstrap.parse_json(data)
        address = _read(f"{self.path}/address")
        if not address:
            return None
        result = bootstrap.parse_output(address)
        self.save_bootstrap(result)
        return result

    def shim_path(self) -> str:
        """The shim program; empty when it was not written."""
        return (_read(f"{self.path}/shim-binary-path") or b"").decode()

    def sandbox(self) -> str:
        """The sandbox whose shim it shares; empty for none."""
        return (_read(f"{self.path}/sandbox") or b"").decode()

    def exit(self) -> tuple[int, int, int] | None:
        """Pid, status and time of an init whose end our shim has seen."""
        kept = plain_json.load(f"{self.path}/exit.json")
        seen = kept.get("pid"), kept.get("exit_status"), kept.get("exited_at")
        return seen if all(type(value) is int for value in seen) else None  # type: ignore[return-value]

    def init_pid(self) -> int:
        """The pid of init; 0 when it never had one."""
        pid = (_read(f"{self.path}/init.pid") or b"").strip()
        return int(pid) if pid.isdigit() else 0

    def execs(self) -> list[Exec]:
        """The processes beside init whose exits the shim has not told, if it is ours."""
        found = []
        for name in sorted(os.listdir(self.path)):
            id, dot, _ = name.rpartition(".pid")
            pid = (_read(f"{self.path}/{name}") or b"").strip() if dot and id != "init" else b""
            if pid.isdigit():
                lives = os.path.exists(f"/proc/{pid.decode()}")
                found.append(Exec(id, int(pid), lives))
        return found

    def open_log(self) -> int:
        """The daemon's end of the log FIFO, made if it is missing; never at its end."""
        with suppress(FileExistsError):
            os.mkfifo(self.log, 0o700)
        return os.open(self.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def remove(self) -> None:
        """Unmount and remove it with its work directory; one that is not there is fine."""
        for hidden in self.hide():
            remove_tree(hidden)

    def hide(self) -> list[str]:
        """As ``remove``, but what takes time is put out of the way, for ``remove_tree``."""
        with suppress(FileNotFoundError):
            try:
                os.rmdir(self.rootfs)  # fails where something is mounted, which is rare
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                mount.unmount_below(self.rootfs, detach=True)
        hidden = _hide(self.path)
        failpoints.hit("runtime.remove.hidden")
        with suppress(FileNotFoundError):
            try:
                os.rmdir(self.work)  # mostly nothing was put there
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                hidden += _hide(self.work)
        return hidden


def group_of(spec: bytes) -> str:
    """What the containers that share one shim have in common; empty for one on its own."""
    if not any(name.encode() in spec for name in GROUP_ANNOTATIONS):
        return ""
    annotations = _parse(spec).get("annotations") or {}
    return next((str(annotations[n]) for n in GROUP_ANNOTATIONS if annotations.get(n)), "")


def bundles(state: str, root: str) -> list[Bundle]:
    """All bundles under a state directory; what earlier removals left is removed."""
    return [
        Bundle(f"{state}/{namespace}/{id}", f"{root}/{namespace}/{id}", namespace, id)
        for namespace in _names(state)
        for id in _names(f"{state}/{namespace}")
    ]


def remove_orphans(state: str, root: str) -> None:
    """Remove work directories that have no bundle, and what removals have left."""
    for namespace in _names(root):
        for id in _names(f"{root}/{namespace}"):
            if not os.path.exists(f"{state}/{namespace}/{id}"):
                remove_tree(f"{root}/{namespace}/{id}")


def _names(directory: str) -> list[str]:
    names = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(directory)):
            if name.startswith("."):
                remove_tree(f"{directory}/{name}")
            else:
                names.append(name)
    return names


def _hide(path: str) -> list[str]:
    """Rename a directory out of sight; its new path, unless there is none."""
    head, name = os.path.split(path)
    while True:
        hidden = f"{head}/.{name}.{next(_removals)}"
        try:
            os.rename(path, hidden)
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # of another process's time
                raise
        else:
            return [hidden]


def _root_group(spec: bytes) -> int:
    """The group on the host of the container's group 0; 0 unless it has a user namespace."""
    if b'"gidMappings"' not in spec:
        return 0
    try:
        mappings = (_parse(spec).get("linux") or {}).get("gidMappings") or []
        return next((int(m.get("hostID", 0)) for m in mappings if not m.get("containerID", 0)), 0)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise Error(f"spec: linux.gidMappings: {error}") from None


def _parse(spec: bytes) -> dict[str, Any]:
    try:
        values = json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise Error(f"spec is no JSON: {error}") from None
    return values if isinstance(values, dict) else {}


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        fs.write_all(fd, data)
    finally:
        os.close(fd)
