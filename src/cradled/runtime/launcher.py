"""Async. Starting shims, and cleaning up after dead ones: our own by fork, others by their program.

Both launchers take the same and give the same. Our shim is a fork of the zygote that gets a socket
which listens already; where it serves is in the bundle before it is forked, so a daemon killed at
any instant finds it again. Containers of one group (``bundle.group_of``) share a shim.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from google.protobuf.message import DecodeError

from cradled import failpoints
from cradled.aio import process, threads
from cradled.aio.keyed_lock import KeyedLock
from cradled.api import runc_options_pb2
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.errors import Error, InvalidArgument, NotFound
from cradled.linux import cgroup, oom, processes, unix
from cradled.runtime import bootstrap
from cradled.runtime.bootstrap import Bootstrap, Daemon
from cradled.runtime.bundle import Bundle
from cradled.spans import span
from cradled.zygote.client import Zygote, import_path

log = logging.getLogger(__name__)

DEFAULT_RUNTIME = "io.containerd.runc.v2"
OWN_RUNTIMES = (DEFAULT_RUNTIME, "io.containerd.cradled.v2")
OWN_PROGRAM = "containerd-shim-cradled-v2"
OWN_ENTRY = "cradled.shim.serve:forked"

RUNC_OPTIONS = "containerd.runc.v1.Options"

WHOLE_NAMESPACE = ".namespace"
"""The group of all containers of a namespace; none has such an id."""

_LEGACY = ("shim-runc-v1", "shim-runhcs-v1")
"""In the names of shims that are never told the parameters of today's."""

_BACKLOG = 128
_PATH_LIMIT = 107  # of a unix socket; below a deep state directory names are cut to fit
_SHORTEST_NAME = 16
_VERSION = 3


class Launcher(Protocol):
    """One kind of shim.

    ``path`` goes into the bundle (``shim-binary-path``). ``is_tidy``: a shim that could not create
    its container, and went when told to, has left nothing of it. ``group``: that of all containers;
    empty for those that name none.
    """

    path: str
    is_tidy: bool
    group: str

    def options(self, options: AnyValue | None, /) -> AnyValue | None:
        """The options that a task of this kind is created with."""
        ...

    async def start(self, bundle: Bundle, options: AnyValue | None, group: str, /) -> Bootstrap:
        """Start a shim for a bundle, or join that of its group; where it serves is saved then.

        Raises Error, and leaves nothing but what is in the bundle.
        """
        ...

    async def delete(self, bundle: Bundle, /) -> Exit:
        """Clean up after a dead shim: its container is killed and deleted. Raises Error."""
        ...


class Launchers:
    """Which launcher serves which runtime type or shim program.

    ``default_binary`` is the OCI runtime of containers that name none, ``runc_root`` where it
    keeps its state for containers that name nothing else. ``shims`` are the paths of shims for
    runtime types that are not to have their usual one. ``group`` is that of all containers that
    are in ours; empty: of those that say so themselves.
    """

    def __init__(
        self,
        daemon: Daemon,
        zygote: Zygote,
        *,
        runc_root: str,
        default_binary: str = "",
        shims: Mapping[str, str] = MappingProxyType({}),
        group: str = "",
    ) -> None:
        self._daemon = daemon
        self.timeouts = daemon.timeouts
        self._own = ZygoteLauncher(daemon, zygote, runc_root, default_binary, group)
        self._shims = shims
        self._resolved: dict[str, str] = {}
        self._programs: dict[str, BinaryLauncher] = {}

    def of_runtime(self, name: str) -> Launcher:
        """Raises Error for what is no runtime, or not installed."""
        name = name or DEFAULT_RUNTIME
        chosen = self._shims.get(name, "")
        if not chosen and name in OWN_RUNTIMES:
            return self._own
        path = self._resolved.get(name)
        if path is None:
            path = self._resolved[name] = resolve(chosen or name)
        return self.of_program(path)

    def of_program(self, path: str) -> Launcher:
        """The launcher that wrote ``path`` into a bundle."""
        if os.path.basename(path) == OWN_PROGRAM:
            return self._own
        launcher = self._programs.get(path)
        if launcher is None:
            launcher = self._programs[path] = BinaryLauncher(self._daemon, path)
        return launcher

    def command(self, name: str) -> list[str]:
        """What starts the shim of a runtime as a program. Raises as ``of_runtime`` does."""
        launcher = self.of_runtime(name)
        return _own_program() if launcher is self._own else [launcher.path]


def program_name(runtime: str) -> str:
    """``io.containerd.kata.v2`` -> ``containerd-shim-kata-v2``. Raises Error."""
    parts = runtime.split(".")
    if "/" in runtime or len(parts) < 2 or not parts[0] or not all(parts[-2:]):
        raise Error(
            f"invalid runtime name {runtime}, use a type such as io.containerd.runc.v2 "
            "or the absolute path of a shim"
        )
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def resolve(runtime: str) -> str:
    """The shim program of a runtime type, or the absolute path in its place. Raises Error."""
    if os.path.isabs(runtime):
        if not os.path.exists(runtime):
            raise Error(f"invalid custom binary path: {runtime}: no such file or directory")
        return runtime
    name = program_name(runtime)
    path = os.environ.get("PATH", os.defpath)
    places = os.pathsep.join([os.getcwd(), path, os.path.dirname(sys.executable)])
    import shutil  # of all of it, only foreign shims need this

    found = shutil.which(name, path=places)
    if found is None:
        raise Error(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
    return os.path.abspath(found)


class BinaryLauncher:
    """Any shim program that keeps the contract of containerd's shims."""

    is_tidy = False
    group = ""

    def __init__(self, daemon: Daemon, path: str) -> None:
        self.path = path
        self._daemon = daemon
        self._legacy = any(name in os.path.basename(path) for name in _LEGACY)
        self._groups: KeyedLock[tuple[str, str]] = KeyedLock("shim start")

    def options(self, options: AnyValue | None, /) -> AnyValue | None:
        return options

    async def start(self, bundle: Bundle, options: AnyValue | None, group: str, /) -> Bootstrap:
        """The program itself finds out about groups, if it need not do so twice at a time."""
        async with self._groups((bundle.namespace, group or bundle.id)):
            try:
                result = bootstrap.parse_output(await self._run(bundle, options))
            except BaseException:
                # Nobody knows of a shim that is there nevertheless, nor can know before we let go.
                await threads.run("fs", processes.end_those_in, bundle.path)
                raise
        await threads.run("fs", bundle.save_bootstrap, result)
        return result

    async def delete(self, bundle: Bundle, /) -> Exit:
        return await _run_delete([self.path], self._daemon, bundle)

    async def _run(self, bundle: Bundle, options: AnyValue | None) -> bytes:
        """What the program printed. Raises Error when it fails."""
        try:
            done = await self._ask(bundle, options)
        except TimeoutError:
            seconds = self._daemon.timeouts.start
            reason = f"{self.path} did not terminate within {seconds:g} s"
            raise Error(f"failed to start shim: start failed: {reason}") from None
        except OSError as error:
            reason = f"fork/exec {self.path}: {(error.strerror or str(error)).lower()}"
            raise Error(f"failed to start shim: start failed: {reason}") from error
        if done.status:
            output = done.stdout.decode(errors="replace").strip()
            raise Error(f"failed to start shim: start failed: {output}: {_status(done.status)}")
        failpoints.hit("runtime.create.started")
        return done.stdout

    async def _ask(self, bundle: Bundle, options: AnyValue | None) -> process.Finished:
        done: process.Finished | None = None
        if not self._legacy:
            message = bootstrap.params(self._daemon, bundle.namespace, bundle.id, options)
            done = await self._start(bundle, message.SerializeToString())
        if done is None or done.status:
            # A shim older than BootstrapParams fails on them; all read the older form.
            done = await self._start(bundle, bootstrap.legacy_params(options))
            self._legacy = not done.status
        return done

    async def _start(self, bundle: Bundle, stdin: bytes) -> process.Finished:
        flags = bootstrap.arguments(self._daemon, bundle.namespace, bundle.id)
        return await process.run(
            [self.path, *flags, "start"],
            env=bootstrap.environment(os.environ, self._daemon, bundle.namespace),
            cwd=bundle.path,
            stdin=stdin,
            combined=True,
            timeout=self._daemon.timeouts.start,
        )


class ZygoteLauncher:
    """Our own shim, forked.

    Its socket's name is new each time, so that a shim that goes cannot unlink its successor's; only
    groups have one that can be found again.
    """

    is_tidy = True

    def __init__(
        self,
        daemon: Daemon,
        zygote: Zygote,
        runc_root: str,
        default_binary: str = "",
        group: str = "",
    ) -> None:
        self.path = f"{os.path.dirname(sys.executable)}/{OWN_PROGRAM}"
        self._daemon = daemon
        self._zygote = zygote
        self._runc_root = runc_root
        self._default_binary = default_binary
        self.group = group
        self._groups: KeyedLock[str] = KeyedLock("shim fork")

    def options(self, options: AnyValue | None, /) -> AnyValue | None:
        """Fill in the default runtime and where it keeps its state: the shim writes them down.

        Raises Error for options of another kind of runtime.
        """
        message = runc_options(options)
        message.binary_name = message.binary_name or self._default_binary
        message.root = message.root or self._runc_root
        return AnyValue(RUNC_OPTIONS, message.SerializeToString())

    async def start(self, bundle: Bundle, options: AnyValue | None, group: str, /) -> Bootstrap:
        path = self._socket_path(bundle.namespace, group)
        result = Bootstrap(_VERSION, f"unix://{path}")
        async with self._groups(path):
            listener = await threads.run("fs", _prepare, bundle, result, path)
            if listener is not None:
                with listener:
                    await self._fork(bundle, options, listener, path)
        return result

    async def delete(self, bundle: Bundle, /) -> Exit:
        return await _run_delete(_own_program(), self._daemon, bundle)

    def _socket_path(self, namespace: str, group: str) -> str:
        key = f"{self._daemon.grpc_address.rstrip('/')}/{namespace}/{group}"
        name = hashlib.sha256(key.encode()).hexdigest() if group else os.urandom(32).hex()
        directory = self._daemon.socket_dir
        return f"{directory}/{name[: max(_PATH_LIMIT - len(directory) - 1, _SHORTEST_NAME)]}"

    async def _fork(
        self, bundle: Bundle, options: AnyValue | None, listener: socket.socket, path: str
    ) -> None:
        params = {
            "namespace": bundle.namespace,
            "bundle": bundle.path,
            "ttrpc_address": self._daemon.ttrpc_address,
            "runc_root": self._runc_root,
            "runtime_limit": self._daemon.timeouts.runtime,
            "sched_core": bool((self._daemon.env or {}).get("SCHED_CORE")),
        }
        try:
            with span("zygote.fork"):
                _, pidfd = await self._zygote.fork(
                    OWN_ENTRY,
                    params,
                    [listener.fileno()],
                    name="cradled-shim",
                    oom_score_adj=min(oom.score() + 1, oom.MAX_SCORE),
                    cgroups=_shim_cgroups(options),
                )
        except BaseException:
            os.unlink(path)
            raise
        os.close(pidfd)
        failpoints.hit("runtime.create.forked")


def runc_options(options: AnyValue | None) -> runc_options_pb2.Options:
    """The options of runc's kind of runtimes; of none, empty ones. Raises Error for others."""
    if options is None or not options.type_url:
        return runc_options_pb2.Options()
    if options.type_url.rpartition("/")[2] != RUNC_OPTIONS:
        raise Error(f"invalid task create option for {DEFAULT_RUNTIME}")
    try:
        return runc_options_pb2.Options.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"task create options: {error}") from None


def _prepare(bundle: Bundle, result: Bootstrap, path: str) -> socket.socket | None:
    """Save where the shim will serve, and have it listen there; None where one serves already."""
    bundle.save_bootstrap(result)
    failpoints.hit("runtime.create.address")
    if not unix.remove_stale(path):
        return None
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        failpoints.hit("runtime.create.bound")
        os.chmod(path, 0o600)  # nobody can connect before it listens
        listener.listen(_BACKLOG)
        failpoints.hit("runtime.create.listening")
    except BaseException:
        listener.close()
        raise
    return listener


def remove_socket(saved: Bootstrap | None) -> None:
    """Blocking: remove a dead shim's socket, unless others of its group are served there."""
    if saved is not None and saved.path:
        unix.remove_stale(saved.path)


def _shim_cgroups(options: AnyValue | None) -> Sequence[str]:
    group = runc_options(options).shim_cgroup
    if not group:
        return ()
    directories = cgroup.directories(group)
    if not directories:
        raise NotFound(f"shim cgroup {group}")
    return directories


def _own_program() -> list[str]:
    """Our shim as a program, wherever it is installed."""
    code = (
        f"import sys; sys.path[:0] = {import_path()!r}; "
        "from cradled.shim.__main__ import main; sys.exit(main())"
    )
    return [sys.executable, "-I", "-S", "-c", code]


async def _run_delete(program: Sequence[str], daemon: Daemon, bundle: Bundle) -> Exit:
    flags = bootstrap.arguments(daemon, bundle.namespace, bundle.id, bundle.path)
    done = await process.run(
        [*program, *flags, "delete"],
        env=bootstrap.environment(os.environ, daemon, bundle.namespace),
        cwd=bundle.path,
        timeout=daemon.timeouts.cleanup,
    )
    for line in done.stderr.decode(errors="replace").splitlines():
        log.warning("shim of %s: %s", bundle.id, line)
    if done.status:
        output = done.stderr.decode(errors="replace").strip()
        raise Error(f"shim delete failed: {output}: {_status(done.status)}")
    return bootstrap.parse_delete(done.stdout)


def _status(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status}"
