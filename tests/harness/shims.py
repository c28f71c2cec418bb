"""A shim under test, driven over ttrpc by protobuf's own messages; and a daemon's ear for events.

Everything is plain blocking code with a deadline: the thing under test is another process.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cradled
from cradled.api import bootstrap_pb2, events_pb2, events_ttrpc_pb2, task_v3_pb2, wellknown_pb2
from cradled.errors import Error
from cradled.ttrpc.connection import CLIENT, SERVER, Connection, RequestReceived, ResponseReceived
from harness import leaks

PATIENCE = 20.0
SOURCE = str(Path(cradled.__file__).parent.parent)
PROGRAM = f"import sys; sys.path.insert(0, {SOURCE!r}); import cradled.shim.__main__ as m; " \
    "sys.exit(m.main())"  # fmt: skip
# What the zygote does, as far as a shim can tell.
FORKED = f"""
import gc, os, sys
sys.path.insert(0, {SOURCE!r})
from cradled.shim.serve import forked
params = eval(sys.argv[1])
fd = int(sys.argv[2])
gc.freeze()
pid = os.fork()
if pid:
    print(pid, flush=True)
    os._exit(0)
os.setsid()
for std in (0, 1, 2):
    os.dup2(os.open("/dev/null", os.O_RDWR), std)
os.closerange(3, fd)
os.closerange(fd + 1, 1024)
forked(params, [fd])
os._exit(0)
"""


class Status(Error):
    """A call's failure as it came over the wire."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Channel:
    """A ttrpc client connection; ``call`` waits for its reply."""

    def __init__(self, path: str, service: str = "containerd.task.v3.Task") -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.connection = Connection(CLIENT)
        self.service = service
        self.replies: dict[int, ResponseReceived] = {}

    def send(self, method: str, request: Any) -> int:
        stream = self.connection.send_request(self.service, method, request.SerializeToString())
        self.sock.sendall(self.connection.data_to_send())
        return stream

    def receive(self, stream: int, response: Any) -> Any:
        while stream not in self.replies:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionResetError("the shim has closed the connection")
            for event in self.connection.receive_data(data):
                self.replies[event.stream_id] = event
        reply = self.replies.pop(stream)
        if reply.code:
            raise Status(reply.code, reply.message)
        return response.FromString(reply.payload)

    def call(self, method: str, request: Any, response: Any) -> Any:
        return self.receive(self.send(method, request), response)

    def close(self) -> None:
        self.sock.close()


class Ear:
    """The daemon's events service; keeps what it hears, in order."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.heard: list[tuple[str, Any]] = []
        self.namespaces: set[str] = set()
        self.refuse = 0
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._clients: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Go away, as a daemon that is killed."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        os.unlink(self.path)
        for client in self._clients:
            with suppress(OSError):  # gone by itself
                client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        connection = Connection(SERVER)
        with client, suppress(OSError):  # closed under us by close()
            while data := client.recv(65536):
                heard = []
                for event in connection.receive_data(data):
                    assert isinstance(event, RequestReceived)
                    heard += self._answer(connection, event)
                client.sendall(connection.data_to_send())
                with self._changed:
                    self.heard += heard
                    self._changed.notify_all()

    def _answer(self, connection: Connection, request: RequestReceived) -> list[tuple[str, Any]]:
        assert request.service == "containerd.services.events.ttrpc.v1.Events"
        if self.refuse:
            self.refuse -= 1
            connection.send_response(request.stream_id, code=14, message="not now")
            return []
        envelope = events_ttrpc_pb2.ForwardRequest.FromString(request.payload).envelope
        kind = getattr(events_pb2, envelope.event.type_url.rpartition(".")[2])
        self.namespaces.add(envelope.namespace)
        connection.send_response(request.stream_id)
        return [(envelope.topic, kind.FromString(envelope.event.value))]

    def topics(self) -> list[str]:
        return [topic.removeprefix("/tasks/") for topic, _ in self.heard]

    def wait(self, topic: str, count: int = 1) -> Any:
        """The ``count``-th event of a topic."""

        def found() -> list[Any]:
            return [event for name, event in self.heard if name == "/tasks/" + topic]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, PATIENCE):
                raise AssertionError(f"no {topic} among {self.topics()}")
            return found()[count - 1]


class Shim:
    """A running shim with its own directory, namespace and mark.

    ``prelude`` is run where it is forked from, to shorten what it waits for. ``foreign`` is the
    program of another shim, of version 2, to be driven in the place of ours.
    """

    def __init__(
        self,
        directory: Path,
        *,
        forked: bool = True,
        runtime: str = "runc",
        wrapper: Sequence[str] = (),
        prelude: str = "",
        foreign: str = "",
    ) -> None:
        self.mark = "s" + secrets.token_hex(5)
        self.directory = directory
        self.runtime = runtime
        self.wrapper = list(wrapper)
        self.prelude = prelude
        self.foreign = foreign
        self.env = {**os.environ, leaks.MARK: self.mark}
        self.bundles = directory / "bundles"
        self.bundles.mkdir()
        self.ear = Ear(str(directory / "events.ttrpc"))
        self.grpc = str(directory / "events")
        self.runc_root = str(directory / "runc")
        first = self.bundle("first")
        os.mkfifo(first / "log", 0o700)
        self._log = os.open(first / "log", os.O_RDWR | os.O_NONBLOCK)
        self.pid = 0
        if foreign:
            self.path = self.program("start", bundle=first).stdout.decode().removeprefix("unix://")
        elif forked:
            self.path = str(directory / "shim.sock")
            self.pid = self._fork(first)
        else:
            self.path = self.start_program(first).removeprefix("unix://")
        version = 2 if foreign else 3
        self.channel = Channel(self.path, f"containerd.task.v{version}.Task")
        self.pid = self.pid or self.connect().shim_pid

    def _fork(self, bundle: Path) -> int:
        params = {
            "namespace": self.mark,
            "bundle": str(bundle),
            "ttrpc_address": self.ear.path,
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            done = subprocess.run(
                [*self.wrapper, sys.executable, "-I", "-S", "-c",
                 FORKED.replace("gc.freeze()", f"{self.prelude}\ngc.freeze()"), repr(params),
                 str(listener.fileno())],
                pass_fds=(listener.fileno(),), env=self.env, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
        return int(done.stdout)

    def program(
        self, *words: str, bundle: Path, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim's program as a daemon does."""
        ours = [sys.executable, "-I", "-S", "-c", PROGRAM]
        argv = [*([self.foreign] if self.foreign else ours), "-namespace", self.mark]
        argv += ["-address", self.grpc, "-publish-binary", "/bin/false", "-id", bundle.name]
        return subprocess.run(
            [*argv, *words], cwd=bundle, input=stdin, check=check, capture_output=True,
            env={**self.env, "TTRPC_ADDRESS": self.ear.path}, timeout=PATIENCE,
        )  # fmt: skip

    def start_program(self, bundle: Path, *, modern: bool = True) -> str:
        """``start``; the address it answers."""
        params = bootstrap_pb2.BootstrapParams(
            instance_id=bundle.name,
            namespace=self.mark,
            containerd_ttrpc_address=self.ear.path,
            containerd_grpc_address=self.grpc,
            socket_dir=str(self.directory / "s"),
        )
        done = self.program("start", bundle=bundle, stdin=params.SerializeToString())
        assert done.stderr == b""
        result = bootstrap_pb2.BootstrapResult.FromString(done.stdout)
        assert (result.version, result.protocol) == (3, "ttrpc")
        return result.address

    def bundle(self, id: str, *args: str, **changes: Any) -> Path:
        """A bundle of a busybox that runs ``args``."""
        bundle = self.bundles / id
        bundle.mkdir(mode=0o700)
        rootfs = bundle / "rootfs"
        make_rootfs(rootfs)
        (bundle / "work").mkdir()
        spec = make_spec(f"/{self.mark}/{id}", args or ("/bin/true",), **changes)
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    # Calls

    def log(self) -> bytes:
        """What the shim has written to its log, once there is something."""
        assert select.select([self._log], [], [], PATIENCE)[0], "nothing was logged"
        return os.read(self._log, 65536)

    def call(self, method: str, response: Any = None, **fields: Any) -> Any:
        return self.channel.call(method, request(method, **fields), response or reply(method))

    def create(self, id: str, *args: str, spec: dict[str, Any] | None = None, **fields: Any) -> int:
        bundle = self.bundles / id
        if not bundle.exists():
            self.bundle(id, *args, **(spec or {}))
        if "options" not in fields:
            fields["options"] = options(binary_name=self.runtime, root=self.runc_root)
        return self.call("Create", id=id, bundle=str(bundle), **fields).pid  # type: ignore[no-any-return]

    def connect(self, id: str = "") -> Any:
        return self.call("Connect", id=id)

    def state(self, id: str, exec_id: str = "") -> Any:
        return self.call("State", id=id, exec_id=exec_id)

    def exec(self, id: str, exec_id: str, *args: str, **fields: Any) -> int:
        """Register and start an exec; its pid."""
        self.add_exec(id, exec_id, *args, **fields)
        return self.call("Start", id=id, exec_id=exec_id).pid  # type: ignore[no-any-return]

    def add_exec(self, id: str, exec_id: str, *args: str, **fields: Any) -> None:
        process = {**PROCESS, "args": list(args), "terminal": fields.get("terminal", False)}
        any_ = wellknown_pb2.Any(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
            value=json.dumps(process).encode(),
        )
        self.call("Exec", id=id, exec_id=exec_id, spec=any_, **fields)

    def wait(self, id: str, exec_id: str = "") -> int:
        return self.call("Wait", id=id, exec_id=exec_id).exit_status  # type: ignore[no-any-return]

    def run(self, id: str, *args: str, **fields: Any) -> int:
        """The whole life of a container; its exit status."""
        self.create(id, *args, **fields)
        self.call("Start", id=id)
        self.wait(id)
        return self.call("Delete", id=id).exit_status  # type: ignore[no-any-return]

    def shut_down(self) -> None:
        """Ask it to exit, and wait until it has."""
        pidfd = os.pidfd_open(self.pid)
        try:
            self.call("Shutdown", id="")
            assert select.select([pidfd], [], [], PATIENCE)[0], "the shim has not exited"
        finally:
            os.close(pidfd)

    def destroy(self) -> None:
        """End it whatever state it is in, its containers first; nothing must stay."""
        try:
            for bundle in sorted(self.bundles.iterdir()):
                self._destroy_container(bundle.name)
            self.shut_down()
        finally:
            self.channel.close()
            self.ear.close()
            os.close(self._log)
        leaks.assert_settled(self.mark, str(self.directory))
        leaks.remove_parents(self.mark)
        shutil.rmtree(self.directory)

    def _destroy_container(self, id: str) -> None:
        if not self.connect(id).task_pid:
            return
        try:
            self.call("Kill", id=id, signal=9)
            self.wait(id)
        except Status as error:
            if error.code != 5:
                raise
        self.call("Delete", id=id)


PROCESS: dict[str, Any] = {
    "terminal": False,
    "user": {"uid": 0, "gid": 0},
    "args": [],
    "env": ["PATH=/bin", "TERM=xterm"],
    "cwd": "/",
    "capabilities": {
        name: ["CAP_KILL", "CAP_CHOWN"] for name in ("bounding", "effective", "permitted")
    },
    "noNewPrivileges": True,
}


def make_rootfs(rootfs: Path) -> None:
    for name in ("bin", "proc", "dev", "tmp", "sys"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin" / "busybox")
    for name in ("sh", "true", "false", "sleep", "cat", "echo", "ls", "stty", "kill", "ps", "dd",
                 "env", "head", "test", "tr", "readlink", "tail", "wc"):  # fmt: skip
        (rootfs / "bin" / name).symlink_to("busybox")


def make_spec(
    cgroup: str,
    args: Sequence[str],
    *,
    terminal: bool = False,
    namespaces: Sequence[str] = ("pid", "mount", "ipc", "uts"),
    resources: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {**PROCESS, "args": list(args), "terminal": terminal},
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "annotations": annotations or {},
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": name} for name in namespaces],
            "resources": resources or {},
        },
    }  # fmt: skip


def options(**fields: Any) -> Any:
    from cradled.api import runc_options_pb2

    message = runc_options_pb2.Options(**fields)
    return wellknown_pb2.Any(
        type_url="containerd.runc.v1.Options", value=message.SerializeToString()
    )


def request(method: str, **fields: Any) -> Any:
    kinds = {"Create": "CreateTask", "Exec": "ExecProcess", "Update": "UpdateTask",
             "Checkpoint": "CheckpointTask"}  # fmt: skip
    kind = getattr(task_v3_pb2, kinds.get(method, method) + "Request")
    return kind(**fields)


def reply(method: str) -> Any:
    names = {"Create": "CreateTaskResponse"}
    return getattr(task_v3_pb2, names.get(method, method + "Response"), wellknown_pb2.Empty)


class Fifos:
    """The client's side of the standard streams, made as the Go client makes them."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700)
        self.names = names
        self.paths = {name: str(directory / name) for name in names}
        self.fds: dict[str, int] = {}
        for name, path in self.paths.items():
            os.mkfifo(path, 0o700)
            if name != "stdin":
                self.open_output(name)

    def open_output(self, name: str = "stdout") -> int:
        self.fds[name] = os.open(self.paths[name], os.O_RDONLY | os.O_NONBLOCK)
        return self.fds[name]

    def open_stdin(self) -> int:
        self.fds["stdin"] = os.open(self.paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
        return self.fds["stdin"]

    def read(self, name: str = "stdout", until: bytes | None = None) -> bytes:
        """What comes out, to the end or until it holds ``until``."""
        data, fd = bytearray(), self.fds[name]
        deadline = time.monotonic() + PATIENCE
        while until is None or until not in data:
            ready = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise AssertionError(f"{name} has not ended after {bytes(data[-200:])!r}")
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            data += chunk
        return bytes(data)

    def close(self, *names: str) -> None:
        for name in names or list(self.fds):
            os.close(self.fds.pop(name))


@contextmanager
def running(directory: Path, **how: Any) -> Iterator[Shim]:
    """A shim that leaves nothing behind."""
    shim = Shim(directory, **how)
    try:
        yield shim
    finally:
        shim.destroy()


def start(shim: Shim, id: str, script: str, terminal: bool = False, **streams: Any) -> None:
    """Create and start a container that runs a shell script."""
    spec = {"terminal": terminal}
    shim.create(id, "/bin/sh", "-c", script, spec=spec, terminal=terminal, **streams)
    shim.call("Start", id=id)


def finish(shim: Shim, id: str) -> int:
    """Wait for a container's end, delete it; its exit status."""
    status = shim.wait(id)
    shim.call("Delete", id=id)
    return status


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)
    return value


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; it may still wait for whoever adopted it to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
