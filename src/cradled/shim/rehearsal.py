"""Blocking. A shim's whole life, played in the zygote before it forks.

A forked shim shares its parent's memory until it writes to it, and CPython writes when it runs
code for the first times: it fills caches, specialises instructions, counts references to names.
What has run often enough before the fork writes less after it, in every shim. So a client and a
container, whose runtime and init do nothing, live through all that is common.
What only a real runtime or a privileged process can do is played as far as that goes.
"""

from __future__ import annotations

import gc
import os

from cradled.linux import direct, libc, unix
from cradled.linux.coroutines import Future
from cradled.linux.spawn import spawn
from cradled.shim import bundle, supervise
from cradled.shim import messages as m
from cradled.shim.publisher import SERVICE
from cradled.shim.server import Server
from cradled.shim.service import NAMES
from cradled.ttrpc.codec import encode
from cradled.ttrpc.connection import CLIENT, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cradled.linux.coroutines import Loop
    from cradled.ttrpc.codec import Message

TIMES = 10
"""How often is enough: CPython 3.11 specialises what has run eight times."""
_PATIENCE = 1.0  # seconds for one time, which takes some milliseconds
_RUNTIME, _INIT = "true", "cat"
# What runc keeps of a container, as far as ``direct`` reads it.
_NOTES = (
    '{"id":"c","config":{"cgroups":{"path":"/c","Systemd":false},"Hooks":null},'
    '"rootless":false,"cgroup_paths":{},"intel_rdt_path":""}'
)


def rehearse(directory: str, times: int) -> None:
    """Play in ``directory``, which is made and removed. Raises OSError."""
    before = os.listdir("/proc/self/fd")
    os.mkdir(directory, 0o700)
    try:
        for name in ("stdout", "stderr"):
            os.mkfifo(f"{directory}/{name}")
        for _ in range(times):
            if not _play(directory):
                break
    finally:
        libc.prctl(supervise.PR_SET_CHILD_SUBREAPER, 0)
        gc.collect()  # what closes itself; then what a shim leaves to its exit
        for fd in set(os.listdir("/proc/self/fd")) - set(before):
            if os.path.exists(f"/proc/self/fd/{fd}"):
                os.close(int(fd))
        _remove(directory)


def _remove(directory: str) -> None:
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(directory)


def _play(directory: str) -> bool:
    listener, events = unix.listen(f"{directory}/s"), unix.listen(f"{directory}/events")
    client = _Client(directory)

    def began(loop: Loop) -> None:
        methods = {SERVICE: {"Forward": ("forward", m.ForwardRequest)}}
        loop.spawn(Server(loop, events, methods, client, _nothing, _nothing).serve())
        loop.spawn(client.play(loop))
        loop.spawn(_limit(loop))

    supervise.run(listener, "rehearsal", directory, f"{directory}/events", began)
    os.unlink(f"{directory}/events")
    return client.done


async def _limit(loop: Loop) -> None:
    await loop.sleep(_PATIENCE)
    loop.stop()


def _nothing() -> None:
    pass


class _Client:
    """Calls the methods of a usual life, and takes the events of it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._socket = unix.connect(f"{directory}/s")
        self._connection = Connection(CLIENT)
        self.done = False

    async def play(self, loop: Loop) -> None:
        options = encode(m.Options(binary_name=_RUNTIME, root=self._directory))
        stdin, end = os.pipe2(os.O_CLOEXEC)
        pid = spawn([_INIT], {}, (stdin, None, None))
        os.close(stdin)
        bundle.write(f"{self._directory}/init.pid", str(pid), 0o600)
        create = m.CreateTaskRequest(
            id="c", bundle=self._directory, options=m.Any(type_url=m.Options.NAME, value=options),
            stdout=f"{self._directory}/stdout", stderr=f"{self._directory}/stderr",
        )  # fmt: skip
        await self._call(loop, "Connect", m.ConnectRequest(id="c"))
        await self._call(loop, "Create", self._unmountable(create))
        await self._call(loop, "Create", create)
        await self._call(loop, "Start", m.StartRequest(id="c"))
        await self._start_directly(loop)
        await self._call(loop, "State", m.StateRequest(id="c"))
        await self._call(loop, "Stats", m.StatsRequest(id="c"))
        os.close(end)
        await self._call(loop, "Wait", m.WaitRequest(id="c"))
        await self._call(loop, "Delete", m.DeleteRequest(id="c"))
        self.done = True
        await self._call(loop, "Shutdown", m.ShutdownRequest(id="c"))

    def _unmountable(self, create: m.CreateTaskRequest) -> m.CreateTaskRequest:
        """A container whose root file system does not exist."""
        missing = f"{self._directory}/missing"
        rootfs = m.Mount(type="bind", source=missing, options=["rbind", "rw"])
        return m.CreateTaskRequest(
            id="m", bundle=create.bundle, options=create.options, rootfs=[rootfs]
        )

    async def _start_directly(self, loop: Loop) -> None:
        notes = f"{self._directory}/notes"
        os.mkdir(notes)
        bundle.write(f"{notes}/state.json", _NOTES, 0o600)
        os.mkfifo(f"{notes}/exec.fifo")
        init = os.open(f"{notes}/exec.fifo", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(init, b"0")
        container = direct.Runc(notes)
        await container.start(loop, Future())
        os.close(init)
        container.delete()

    async def forward(self, request: m.ForwardRequest) -> None:
        pass

    async def _call(self, loop: Loop, method: str, request: Message) -> None:
        fd = self._socket.fileno()
        self._connection.send_request(NAMES[0], method, encode(request))
        await loop.write(fd, self._connection.data_to_send())
        while self._connection.open_streams:
            await loop.readable(fd)
            self._connection.receive_data(os.read(fd, 4096))
