"""Blocking. A worker: a process forked by the zygote that does the daemon's heavy or risky work.

It works in mount and network namespaces of its own and with the capabilities that owning, creating
and labelling files takes; SYS_ADMIN stays for mounts and overlay's attributes, but with neither
SYS_CHROOT nor SYS_PTRACE it leads into no other process's namespaces. Jobs come one at a time as
messages over a SEQPACKET socket. The worker ends when the socket does: between jobs by reading the
end, during one by SIGIO, whose default is death. While it lives it holds a shared lock on the file
that tells the next daemon whether old workers may still be writing.

Only ``os`` and what is as small is imported before the fork, because shims are forked from the
same zygote; jobs are imported in the worker.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from contextlib import contextmanager

from cradled.zygote import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

CLONE_NEWNS = 0x0002_0000
CLONE_NEWNET = 0x4000_0000


def forked(params: dict[str, Any], fds: list[int]) -> None:
    """Serve jobs on ``fds[0]`` until it ends.

    ``params``: ``roots``, directories that jobs work below, none when they may work anywhere;
    ``lock``, a path; ``mountpoint``, a directory.
    """
    from cradled.linux import memory
    from cradled.workers import jobs

    jobs.load()
    memory.own_process()
    memory.reuse_buffers()
    control = socket.socket(fileno=fds[0])
    lock = os.open(params["lock"], os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    confine(params["roots"])
    serve(control, params["mountpoint"])


def confine(roots: Sequence[str]) -> None:
    """Leave the daemon's namespaces and give up what is not needed."""
    from cradled.linux import capabilities as caps
    from cradled.linux import libc

    libc.unshare(CLONE_NEWNS | CLONE_NEWNET)
    _be_slave()
    if roots:
        _detach_others(roots)
    caps.keep_only(
        (
            caps.CHOWN,
            caps.DAC_OVERRIDE,
            caps.FOWNER,
            caps.FSETID,
            caps.MKNOD,
            caps.SETFCAP,
            caps.SYS_ADMIN,
        )
    )
    os.umask(0)
    os.chdir("/")


def _be_slave() -> None:
    """What the daemon unmounts goes here too, mounts made here are seen nowhere else."""
    from cradled.linux import mount

    try:
        mount.mount_raw("", "", "/", mount.MS_SLAVE | mount.MS_REC)
    except OSError as error:
        # The root of a chroot need not be a mount point. Then the few mounts made here may be seen
        # outside too, until they are unmounted.
        if error.errno != errno.EINVAL:
            raise


def _detach_others(roots: Sequence[str]) -> None:
    """Let go of all mounts but those on the way to ``roots`` and right below them.

    Copies of them here would keep alive what others unmount meanwhile: containers' root file
    systems, network namespaces, whole disks. Where nothing propagates, forever.
    """
    from cradled.linux import mount

    for entry in reversed(list(mount.mounts())):
        target = entry.target
        on_the_way = any((root + "/").startswith(target.rstrip("/") + "/") for root in roots)
        if not on_the_way and target != "/proc" and os.path.dirname(target) not in roots:
            try:
                mount.unmount(target, detach=True)
            except OSError:  # hidden below another mount, or gone meanwhile
                continue


def serve(control: socket.socket, mountpoint: str) -> None:
    """Do jobs until the control socket ends."""
    from cradled.workers import jobs

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    try:
        while True:
            data, fds = protocol.receive(control)
            if not data:
                return
            request = protocol.decode(data)
            with _ending_with(control):
                reply = jobs.run(request["job"], request["params"], fds, mountpoint)
            for fd in fds:
                os.close(fd)
            protocol.send(control, protocol.encode(reply), ())
    except ConnectionError:
        return


@contextmanager
def _ending_with(control: socket.socket) -> Iterator[None]:
    """While in here, this process dies if the other side goes away."""
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        yield
    finally:
        fcntl.fcntl(control, fcntl.F_SETFL, flags)
