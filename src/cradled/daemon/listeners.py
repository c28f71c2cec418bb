"""Blocking. Sockets and the locks that keep two daemons apart. Imports little: it runs first.

    <root>/lock, <state>/lock    flock of the one owner, with its pid as text; never removed

The lock goes with the open file, so whatever way its owner ends, it is free. It is taken before a
socket is bound, so of two daemons on one root only one ever touches the sockets.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Collection, Mapping

PATH_LIMIT = 107
PORT_LIMIT = 65535
BACKLOG = 4096
HANDOVER = "CRADLED_HANDOVER"
"""In the environment of a daemon that takes over from another."""

_ACTIVATION = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST_FD = 3


class StartError(Exception):
    """The daemon cannot start here; the text says what to do about it."""


def make_directory(path: str, mode: int, what: str) -> None:
    """Make a directory, parents included; one that exists keeps its mode."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise StartError(f"{what} {path}: {error.strerror}") from error
    if not writable:
        raise StartError(f"{what} {path} is not writable for uid {os.geteuid()}")


def hold(directory: str, what: str) -> int:
    """Own a directory for as long as the returned descriptor is open.

    Raises StartError that names the process holding it.
    """
    try:
        fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"{what} {directory} is not writable: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 64, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        text = f"{what} {directory} is in use by another daemon (pid {holder})"
        raise StartError(text) from None
    sign(fd)
    return fd


def sign(lock: int) -> None:
    """Tell whoever finds the lock taken that it is this process that has it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


class Sockets:
    """The sockets that a daemon listens at, by address; servers get duplicates.

    So the end of a server leaves its clients in the queue, where the next one finds them, in this
    process or in the one that takes over. ``inherited`` are those that listen already: of the
    daemon before, or of a service manager. The latter's are ``lent``: their paths stay where and as
    they are.
    """

    def __init__(
        self, inherited: Mapping[str, socket.socket] | None = None, lent: Collection[str] = ()
    ) -> None:
        self.lent = frozenset(lent)
        self._inherited = dict(inherited or {})
        self._open: dict[str, socket.socket] = {}

    def open(self, path: str, *, mode: int = 0o660, uid: int = 0, gid: int = 0) -> None:
        """Listen at a path, as ``listen`` does, if that is not so yet. Raises StartError."""
        if self._adopt(path):
            if path not in self.lent:
                os.chmod(path, mode)
                os.chown(path, uid, gid)
        elif path not in self._open:
            self._open[path] = listen(path, mode=mode, uid=uid, gid=gid)

    def open_tcp(self, address: str) -> None:
        """As ``open``, for ``listen_tcp``."""
        if not self._adopt(address) and address not in self._open:
            self._open[address] = listen_tcp(address)

    def duplicate(self, address: str) -> socket.socket:
        """A socket that listens at an address that was opened, for a server to close."""
        sock = self._open[address]
        sock.listen(BACKLOG)  # so that clients find us to be the one who listens
        duplicate = sock.dup()
        duplicate.setblocking(False)
        return duplicate

    def all(self) -> dict[str, socket.socket]:
        """What is open, by address, for who takes over."""
        return dict(self._open)

    def close(self) -> None:
        """Listen nowhere any more, and leave no path; idempotent."""
        self.close_unclaimed()
        self._remove(self._open)

    def close_unclaimed(self) -> None:
        """Remove what was inherited and has not been opened."""
        self._remove(self._inherited)

    def forget(self) -> None:
        """Another process has them all."""
        for sock in self._open.values():
            sock.close()
        self._open.clear()

    def _adopt(self, address: str) -> bool:
        if address not in self._inherited:
            return False
        self._open[address] = self._inherited.pop(address)
        return True

    def _remove(self, sockets: dict[str, socket.socket]) -> None:
        for address, sock in sockets.items():
            if sock.family == socket.AF_UNIX and address not in self.lent:
                remove(sock, address)
            else:
                sock.close()
        sockets.clear()


def activated() -> dict[str, socket.socket]:
    """The sockets at which a service manager has clients wait for us (``sd_listen_fds``), by path
    or ``host:port``."""
    pid, count, _ = (os.environ.pop(name, "") for name in _ACTIVATION)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found = {}
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        name = sock.getsockname()
        found[name if isinstance(name, str) else f"{name[0]}:{name[1]}"] = sock
    return found


def listen(path: str, *, mode: int = 0o660, uid: int = 0, gid: int = 0) -> socket.socket:
    """A listening unix socket at ``path``; what a dead daemon left there is replaced.

    Raises StartError when a living process listens there.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise StartError(f"socket path {path} is longer than {PATH_LIMIT} bytes")
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        os.chmod(path, mode)  # nobody can connect before listen
        if (uid, gid) != (os.geteuid(), os.getegid()):
            os.chown(path, uid, gid)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen at {path}: {error.strerror}") from error
    return sock


def listen_tcp(address: str) -> socket.socket:
    """A listening TCP socket at ``host:port``, an empty host being all. Raises StartError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > PORT_LIMIT:
        raise StartError(f'address "{address}" is not host:port')
    try:
        (family, kind, protocol, _, name), *_ = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(name)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise StartError(f"cannot listen at {address}: {error}") from error
    return sock


def remove(sock: socket.socket, path: str) -> None:
    """Close a listening socket (one that a server closed already is fine) and its path."""
    sock.close()
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _clear(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen at {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen at {path}: a file that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(path)
        if found in (0, errno.EAGAIN):  # EAGAIN: it listens, its queue is full
            raise StartError(f"address {path} is in use{_listener(probe) if not found else ''}")
    os.unlink(path)


def _listener(connected: socket.socket) -> str:
    """Peer credentials of a unix socket are those of the process that called listen."""
    creds = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return f" by process {struct.unpack('3i', creds)[0]}"
