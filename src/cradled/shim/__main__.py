"""Blocking. The program ``containerd-shim-cradled-v2``: start, delete, -info, and serving.

    containerd-shim-cradled-v2 -namespace NS -address GRPC -id ID [-bundle PATH] start|delete

The contract is containerd's, all versions of it (``bootstrap``), so a foreign daemon can use this
shim. ``start`` forks what serves, after its socket listens, and does not wait for it. ``delete``
cleans up after a shim that is gone. Without an action it serves on descriptor 3.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket
from fcntl import LOCK_EX, flock
from select import select
from time import time_ns

from cradled import failpoints
from cradled.errors import Error, NotFound
from cradled.linux import capture, cgroup, leftovers, libc, mount, oom, plain_json, unix
from cradled.linux.signals import SIGKILL
from cradled.linux.spawn import spawn
from cradled.shim import bootstrap, bundle, runc
from cradled.shim import messages as m
from cradled.shim.publisher import timestamp
from cradled.ttrpc.codec import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cradled.shim.bootstrap import Flags, Start

NAME = "io.containerd.cradled.v2"
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_KILLED = 128 + SIGKILL
_LISTENER = 3
_MAX_FD = 1 << 20
_PATIENCE = 4.0  # seconds for a runtime: a daemon that waits for us gives up after 5


def main() -> int:
    """Run the program; the status to exit with."""
    try:
        flags = bootstrap.parse_flags(sys.argv[1:])
        if {"v", "version"} & flags.switches:
            print(f"{sys.argv[0]}:\n  Version:  {_version()}")
        elif "info" in flags.switches:
            os.write(1, _info(sys.stdin.buffer.read()))
        elif flags.action == "start":
            os.write(1, _start(flags))
        elif flags.action == "delete":
            os.write(1, _delete(flags))
        else:
            ttrpc = os.environ.get("TTRPC_ADDRESS") or f"{flags['address']}.ttrpc"
            os.closerange(_LISTENER + 1, _MAX_FD)  # a socket for debugging, at which we say nothing
            _serve(_listener(flags["socket"]), flags["namespace"], ttrpc)
    except (Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _listener(path: str) -> socket:
    """That of a shim which was started to serve: it is given one, or the path for one."""
    return unix.listen(path) if path else socket(AF_UNIX, SOCK_STREAM, 0, _LISTENER)


def _start(flags: Flags) -> bytes:
    """Make sure that a shim serves the container's group; where it does."""
    start = bootstrap.Start(flags, os.environ, _stdin())
    directory = flags["bundle"] or os.getcwd()
    group = start.group(bundle.group_annotations(directory))
    places = _cgroups(start.options.shim_cgroup)
    if os.environ.get("SCHED_CORE"):
        libc.own_core()
    path = _socket_path(start, group)
    address = f"unix://{path}"
    listener = _listen(path)
    failpoints.hit("shim.program.listening")
    if listener is not None:
        pid = os.fork()
        if pid == 0:
            _become_shim(listener, start)
        failpoints.hit("shim.program.forked")
        _place(pid, places)
    # Where older daemons look for the shim after their restart, and ``delete`` for its socket.
    bundle.write(f"{directory}/address", address, 0o644)
    if start.modern:
        bundle.point(f"{directory}/s", start.socket_dir)
    return start.answer(address)


def _become_shim(listener: socket, start: Start) -> None:
    status = 1
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):  # the daemon waits for the end of our output
            os.dup2(null, fd)
        os.close(null)
        _serve(listener, start.namespace, start.ttrpc_address)
        status = 0
    finally:
        os._exit(status)


def _serve(listener: socket, namespace: str, ttrpc_address: str) -> None:
    # Not needed to start a shim where one serves the group already, nor to delete.
    from cradled.shim.supervise import run

    os.set_inheritable(listener.fileno(), False)
    run(listener, namespace, os.getcwd(), ttrpc_address)


def _listen(path: str) -> socket | None:
    """A listening socket; None when somebody listens there already."""
    directory = os.path.dirname(path)
    os.makedirs(directory, 0o700, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flock(fd, LOCK_EX)  # or another of the group might take ours for stale just now
        return unix.listen(path) if unix.remove_stale(path) else None
    finally:
        os.close(fd)


def _socket_path(start: Start, group: str) -> str:
    key = bootstrap.socket_key(start.grpc_address, start.namespace, group)
    return f"{start.socket_dir.rstrip('/')}/{_sha256(key.encode())}"


def _sha256(data: bytes) -> str:
    try:  # hashlib would load all of OpenSSL
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from _sha256 import sha256  # type: ignore[import-not-found]  # Python 3.11
    return sha256(data).hexdigest()  # type: ignore[no-any-return]


def _cgroups(path: str) -> list[str]:
    """Where the options want the serving process. Raises NotFound."""
    if not path:
        return []
    directories = cgroup.directories(path)
    if not directories:
        raise NotFound(f"failed to load cgroup {path}")
    return directories


def _place(pid: int, directories: list[str]) -> None:
    """Put the serving process into cgroups; a little likelier to be killed than we are."""
    for directory in directories:
        cgroup.join(directory, pid)
    oom.set_score(min(oom.score() + 1, oom.MAX_SCORE), pid)


def _delete(flags: Flags) -> bytes:
    """Remove what a dead shim has left of a container."""
    directory = flags["bundle"] or os.getcwd()
    options = bundle.load_options(directory, m.Options())
    root = f"{options.root or runc.DEFAULT_ROOT}/{flags['namespace']}"
    argv = runc.argv(options, root, f"{directory}/log.json", "delete", "--force", flags["id"])
    failpoints.hit("shim.program.deleting")
    try:
        trouble, _ = _run(argv)
    except OSError as error:
        trouble = str(error)
    failpoints.hit("shim.program.deleted")
    if trouble:
        print(f"{argv[0]} delete --force {flags['id']}: {trouble}", file=sys.stderr)
    leftovers.clear(directory, flags["id"], f"{root}/{flags['id']}")
    mount.unmount_below(f"{directory}/rootfs", detach=True)
    unix.remove_stale(bundle.read_address(directory))
    pid, code, at = bundle.load_exit(directory) or (_pid(directory), _KILLED, time_ns())
    return encode(m.DeleteResponse(pid=pid, exit_status=code, exited_at=timestamp(at)))


def _pid(directory: str) -> int:
    try:
        return bundle.read_pid(f"{directory}/init.pid")
    except Error:
        return 0


def _info(stdin: bytes) -> bytes:
    """What this shim and the runtime in the options on stdin can do."""
    options = decode(m.Any, stdin) if stdin else None
    chosen = decode(m.Options, options.value) if options is not None else m.Options()
    binary = chosen.binary_name or runc.DEFAULT_BINARY
    _, features = _run([binary, "features"])
    is_told = plain_json.parse(features.decode(errors="replace"))
    info = m.RuntimeInfo(
        name=NAME,
        version=m.RuntimeVersion(version=_version()),
        options=options,
        features=m.Any(type_url=_FEATURES, value=features) if is_told else None,
    )
    return encode(info)


def _run(argv: list[str]) -> tuple[str, bytes]:
    """Run a command of the runtime: what went wrong, else what it printed. Raises OSError."""
    fd = capture.memory()
    pid = spawn(argv, runc.ENVIRONMENT, (None, fd, None))
    if not select([os.pidfd_open(pid)], [], [], _PATIENCE)[0]:
        os.killpg(pid, SIGKILL)
    _, status = os.waitpid(pid, 0)
    return (f"status {status}", b"") if status else ("", capture.printed(fd))


def _stdin() -> bytes:
    return b"" if os.isatty(0) else sys.stdin.buffer.read()


def _version() -> str:
    from importlib.metadata import version

    return version("cradled")


if __name__ == "__main__":
    sys.exit(main())
