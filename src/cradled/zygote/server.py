"""Blocking. The fork server: imports what its children need, once, and then only forks.

It is started by ``cradled.zygote.client`` as an interpreter of its own. It has one thread, holds
no state and may be killed at any time; it exits when the control socket ends, and what it forked
lives on. A child starts from a clean slate (own session, default signals, no descriptor but its
own, /dev/null as standard streams), calls its entry and exits when that returns.

Memory is why it exists, so it writes as little of it as it can. A page that it writes to after a
fork is no longer shared with the child, which keeps a copy for itself alone (``linux.heap``): so
between two forks it does next to nothing, and even reading the request is left to the child.
"""

from __future__ import annotations

import gc
import os
import sys
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_PEEK, SOCK_SEQPACKET, socket

from cradled import failpoints
from cradled.linux import heap, signals
from cradled.zygote import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

_NULL_FD = 0
_MAX_FD = 1 << 20


def main(preload: Sequence[str]) -> None:
    """Serve until the control socket ends."""
    gc.disable()
    os.closerange(protocol.CONTROL_FD + 1, _MAX_FD)
    os.chdir("/")
    control = socket(AF_UNIX, SOCK_SEQPACKET, 0, protocol.CONTROL_FD)
    for name in preload:
        _preload(name)
    signals.ignore(signals.SIGCHLD)  # nobody has to be waited for
    heap.freeze()
    try:  # noqa: SIM105 - contextlib is not needed otherwise
        _serve(control)
    except ConnectionError:
        pass  # the daemon died


def _preload(name: str) -> None:
    """Import a module for the children and have it prepare what they share, if it wants to.

    One that fails to import fails again when it is asked for, and then only its own children.
    """
    try:
        __import__(name)
        prepare = getattr(sys.modules[name], "prepare", None)
        if prepare is not None:
            prepare()
    except Exception as error:
        print(f"zygote: preload of {name}: {error!r}", file=sys.stderr, flush=True)


def _serve(control: socket) -> None:
    """Fork whenever there is a request, and wait until the child has taken it."""
    while control.recv(1, MSG_PEEK):
        failpoints.hit("zygote.asked")
        waiting, taken = os.pipe()
        try:
            if not os.fork():
                _child(control, taken)
        except OSError as error:
            _refuse(control, error)
            os.write(taken, b"1")
        os.close(taken)
        if not os.read(waiting, 1):
            _drop(control)
        os.close(waiting)
        failpoints.hit("zygote.forked")


def _refuse(control: socket, error: OSError) -> None:
    _, fds = protocol.receive(control)
    _reply(fds[0], {"errno": error.errno})
    for fd in fds:
        os.close(fd)


def _drop(control: socket) -> None:
    """Let go of the request of a child that died before it took it, or just after."""
    try:  # noqa: SIM105
        control.recv(1, MSG_DONTWAIT)
    except BlockingIOError:
        pass


def _child(control: socket, taken: int) -> NoReturn:
    status = 1
    try:
        failpoints.hit("zygote.child.born")
        data, fds = protocol.receive(control)
        failpoints.hit("zygote.child.received")
        os.write(taken, b"1")
        _reply(fds.pop(0), {"pid": os.getpid()}, [os.pidfd_open(os.getpid())])
        failpoints.hit("zygote.child.replied")
        request = protocol.decode(data)
        _reset_signals()
        os.setsid()
        os.umask(0o022)
        _own_only(fds)
        _place(request)
        failpoints.hit("zygote.child.placed")
        gc.enable()
        module, _, function = request["entry"].partition(":")
        if module not in sys.modules:
            __import__(module)
        getattr(sys.modules[module], function)(request["params"], fds)
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reply(fd: int, reply: dict[str, Any], fds: Sequence[int] = ()) -> None:
    channel = socket(AF_UNIX, SOCK_SEQPACKET, 0, fd)
    try:
        protocol.send(channel, protocol.encode(reply), fds)
    except ConnectionError:
        pass  # the daemon died
    finally:
        channel.detach()


def _reset_signals() -> None:
    # Python ignores SIGPIPE and SIGXFSZ; what is ignored stays so down to a container's process.
    for number in (signals.SIGCHLD, signals.SIGINT, *signals.IGNORED_BY_PYTHON):
        signals.handle(number, None)


def _own_only(fds: list[int]) -> None:
    """Close all descriptors but those given; standard streams go to /dev/null."""
    os.dup2(_NULL_FD, 1)
    os.dup2(_NULL_FD, 2)
    low = 3
    for fd in sorted(fds):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _MAX_FD)


def _place(request: dict[str, Any]) -> None:
    """Join cgroups, take the OOM score and the name that were asked for."""
    for directory in request["cgroups"]:
        _write(directory + "/cgroup.procs", "0")
    if request["oom_score_adj"] is not None:
        try:  # noqa: SIM105
            _write("/proc/self/oom_score_adj", str(request["oom_score_adj"]))
        except PermissionError:
            pass  # going below one's own score takes a capability that many hosts withhold
    if request["name"]:
        _write("/proc/self/comm", request["name"])


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
