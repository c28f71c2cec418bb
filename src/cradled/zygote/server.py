"""Blocking. The fork server: imports what its children need, once, and then only forks.

It is started by ``cradled.zygote.client`` as an interpreter of its own. It has one thread, holds
no state and may be killed at any time; it exits when the control socket ends, and what it forked
lives on. A child starts from a clean slate (own session, default signals, no descriptor but its
own, /dev/null as standard streams), calls its entry and exits when that returns.

Forks are plain: the zygote is the parent and reaps, so a pid stays valid until the pidfd that goes
to the daemon is open. Objects made by the imports are frozen, lest a collection in a child copy
the pages they lie in.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from cradled.zygote import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_NULL_FD = 0
_MAX_FD = 1 << 20


def main(config: dict[str, Any]) -> None:
    """Serve until the control socket ends."""
    gc.disable()
    os.closerange(protocol.CONTROL_FD + 1, _MAX_FD)
    os.chdir("/")
    control = socket.socket(fileno=protocol.CONTROL_FD)
    for name in config["preload"]:
        _preload(name)
    signal.signal(signal.SIGCHLD, _reap)
    gc.collect()
    gc.freeze()
    try:
        while (message := protocol.receive(control))[0]:
            _serve(control, protocol.decode(message[0]), message[1])
    except ConnectionError:
        pass  # the daemon died before it read its reply


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


def _reap(_number: int, _frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _serve(control: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # not reaped before pidfd_open
    reply: dict[str, Any] = {}
    pidfds = []
    try:
        pid = os.fork()
        if pid == 0:
            _child(request, fds)
        pidfds.append(os.pidfd_open(pid))
        reply["pid"] = pid
    except OSError as error:
        reply["errno"] = error.errno
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    for fd in fds:
        os.close(fd)
    try:
        protocol.send(control, protocol.encode(reply), pidfds)
    finally:
        for fd in pidfds:
            os.close(fd)


def _child(request: dict[str, Any], fds: list[int]) -> NoReturn:
    status = 1
    try:
        _give_sign_of_life(fds.pop(0))
        _reset_signals()
        os.setsid()
        os.umask(0o022)
        _own_only(fds)
        _place(request)
        gc.enable()
        module, _, function = request["entry"].partition(":")
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


def _give_sign_of_life(fd: int) -> None:
    """From here on the daemon must not ask another zygote, should this one die."""
    try:  # noqa: SIM105
        os.write(fd, b"1")
    except BrokenPipeError:
        pass  # it has the zygote's reply already


def _reset_signals() -> None:
    # Python ignores SIGPIPE and SIGXFSZ; what is ignored stays so down to a container's process.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


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
        try:  # noqa: SIM105 - contextlib is not needed otherwise
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
