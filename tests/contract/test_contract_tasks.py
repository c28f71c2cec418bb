"""Tasks (reference, services.md section 10): what the daemon itself makes of requests and of what
shims answer. The shims are made up; ``test_tasks_like_containerd`` has real ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.contract import Case, Door, Refused, Served, World, ask_all
from harness.fake_shim import FakeShim, FakeShims
from harness.records import BAD_IDENTIFIERS, SPEC, invalid, missing

from cradled import errors
from cradled.api import containers_pb2, content_pb2, leases_pb2, runc_options_pb2
from cradled.api import task_types_pb2 as types_pb
from cradled.api import tasks_pb2 as pb
from cradled.api.types_pb2 import Descriptor, Mount
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import Empty, Timestamp
from cradled.convert.values import timestamp
from cradled.core.diff import DiffOptions
from cradled.core.values import Descriptor as CoreDescriptor
from cradled.rpc.status import Code
from cradled.runtime.assembly import Assembly
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.checkpoints import CRIU_TAR, Checkpoints
from cradled.runtime.checkpoints import SPEC as SPEC_TYPE
from cradled.runtime.manager import TaskManager
from cradled.runtime.shims import Shims
from cradled.services.tasks import TasksService

NEVER = Timestamp(seconds=-62135596800)
RUNC = "io.containerd.runc.v2"
RESOURCES = AnyMessage(type_url="types.containerd.io/x/LinuxResources", value=b"{}")


def runc(kind: str, **fields: Any) -> AnyMessage:
    value = getattr(runc_options_pb2, kind)(**fields).SerializeToString()
    return AnyMessage(type_url=f"containerd.runc.v1.{kind}", value=value)


def unknown(text: str) -> Refused:
    return Refused(Code.UNKNOWN, text)


NO_CONTAINER = missing('container "none" in namespace "ns"')
NO_TASK = Refused(Code.NOT_FOUND, "task idle not found")
NO_EXEC = missing("process does not exist x")


class PlainDiffer:
    """Of a directory it makes what is in its one file."""

    async def compare(
        self, left: Any, right: Any, content: Any, options: DiffOptions, /
    ) -> CoreDescriptor:
        (file,) = Path(right[0].source).iterdir()
        writer = await content.writer("made")
        await writer.write(file.read_bytes())
        digest = writer.digest()
        await writer.commit(0, digest, options.labels)
        return CoreDescriptor(options.media_type, digest, file.stat().st_size)


@pytest.fixture
async def shims(directory: str) -> AsyncIterator[FakeShims]:
    shims = FakeShims(Path(directory))
    yield shims
    await shims.aclose()


@pytest.fixture
async def manager(world: World, shims: FakeShims, directory: str) -> AsyncIterator[TaskManager]:
    async def sandbox(scope: Any, id: str) -> Bootstrap | None:
        await world.db.scoped(scope).sandboxes.get(id)
        return None

    differ: Any = PlainDiffer()
    checkpoints = Checkpoints(differ, lambda scope: world.db.scoped(scope).content)
    where = Shims(f"{directory}/state", f"{directory}/root", shims)  # type: ignore[arg-type]
    manager = TaskManager(
        Assembly(where, lambda: checkpoints, sandbox),
        lambda scope, id: world.db.scoped(scope).containers.get(id),
        world.exchange,
    )
    yield manager
    await manager.aclose()


@pytest.fixture
def extra(world: World, manager: TaskManager) -> Sequence[Served]:
    return [(pb.Tasks, TasksService(world.db, manager))]


@pytest.fixture
async def tasks(door: Door, shims: FakeShims) -> Tasks:
    tasks = Tasks(door, shims)
    for id in ("c", "d", "idle"):
        await tasks.add(id)
    door.events()
    return tasks


class Tasks:
    """The service behind a door, and containers ``c``, ``d`` and ``idle``."""

    def __init__(self, door: Door, shims: FakeShims) -> None:
        self.door, self.shims = door, shims
        self.stub = door.stub(pb.Tasks)
        self.create, self.start = self.stub.create, self.stub.start
        self.get, self.wait = self.stub.get, self.stub.wait

    async def add(self, id: str, runtime: str = RUNC, **fields: Any) -> None:
        container = containers_pb2.Container(
            id=id, spec=SPEC, runtime=containers_pb2.Container.Runtime(name=runtime), **fields
        )
        request = containers_pb2.CreateContainerRequest(container=container)
        await self.door.stub(containers_pb2.Containers).create(request)

    def shim(self, id: str = "c") -> FakeShim:
        return self.shims.shims[id]

    async def created(self, id: str = "c", **fields: Any) -> int:
        return int((await self.create(pb.CreateTaskRequest(container_id=id, **fields))).pid)

    async def running(self, id: str = "c") -> int:
        await self.created(id)
        return int((await self.start(pb.StartRequest(container_id=id))).pid)

    async def exec(self, exec_id: str, **fields: Any) -> None:
        request = pb.ExecProcessRequest(container_id="c", exec_id=exec_id, **fields)
        await self.stub.exec(request)


def about(id: str) -> list[tuple[str, Any]]:
    return [
        ("start", pb.StartRequest(container_id=id)),
        ("delete", pb.DeleteTaskRequest(container_id=id)),
        ("delete_process", pb.DeleteProcessRequest(container_id=id, exec_id="x")),
        ("get", pb.GetRequest(container_id=id)),
        ("kill", pb.KillRequest(container_id=id, signal=9)),
        ("exec", pb.ExecProcessRequest(container_id=id, exec_id="x", spec=SPEC)),
        ("resize_pty", pb.ResizePtyRequest(container_id=id)),
        ("close_io", pb.CloseIORequest(container_id=id)),
        ("pause", pb.PauseTaskRequest(container_id=id)),
        ("resume", pb.ResumeTaskRequest(container_id=id)),
        ("list_pids", pb.ListPidsRequest(container_id=id)),
        ("checkpoint", pb.CheckpointTaskRequest(container_id=id)),
        ("update", pb.UpdateTaskRequest(container_id=id, resources=RESOURCES)),
        ("wait", pb.WaitRequest(container_id=id)),
    ]


async def test_the_container_is_looked_for_first(tasks: Tasks) -> None:
    asked = [("create", pb.CreateTaskRequest(container_id="none")), *about("none")]
    for rpc, request in asked:
        await Case(rpc, request, NO_CONTAINER).ask(getattr(tasks.stub, rpc))


async def test_then_the_task(tasks: Tasks) -> None:
    for rpc, request in about("idle"):
        await Case(rpc, request, NO_TASK).ask(getattr(tasks.stub, rpc))


async def test_then_the_exec(tasks: Tasks) -> None:
    await tasks.running()
    for rpc, request in about("c"):
        if "exec_id" in request.DESCRIPTOR.fields_by_name and rpc != "exec":
            request.exec_id = "x"
            if rpc == "close_io":
                request.stdin = True
            await Case(rpc, request, NO_EXEC).ask(getattr(tasks.stub, rpc))


async def test_creation(tasks: Tasks) -> None:
    mount = Mount(type="overlay", source="overlay", options=["index=off"])
    request = pb.CreateTaskRequest(
        container_id="c", rootfs=[mount], stdin="i", stdout="o", stderr="e", terminal=True,
        options=runc("Options", no_pivot_root=True),
    )  # fmt: skip
    made = await tasks.create(request)
    assert made == pb.CreateTaskResponse(container_id="c", pid=1001)
    asked = tasks.shim().processes["c", ""].request
    assert (list(asked.rootfs), asked.options) == ([mount], request.options)
    assert (asked.stdin, asked.stdout, asked.stderr, asked.terminal) == ("i", "o", "e", True)
    assert asked.bundle.endswith("/state/ns/c")
    assert Path(asked.bundle, "config.json").read_bytes() == SPEC.value
    exists = Refused(Code.ALREADY_EXISTS, "task c: already exists")
    await Case("again", request, exists).ask(tasks.create)
    assert tasks.door.told() == []  # that is for the shim to tell


CREATION_REFUSED = [
    ("another's options", {"options": runc("CheckpointOptions")},
     unknown(f"invalid task create option for {RUNC}")),
    ("damaged options", {"options": AnyMessage(type_url="containerd.runc.v1.Options", value=b"?")},
     Refused(Code.INVALID_ARGUMENT, re.compile("^task create options: "))),
    ("a runtime that is none", {"runtime_path": "unknown"},
     unknown("invalid runtime name unknown")),
    ("a checkpoint of another type",
     {"checkpoint": Descriptor(media_type="text/plain", digest="sha256:" + "0" * 64, size=1)},
     unknown('unsupported checkpoint type "text/plain"')),
    ("a checkpoint that is not there",
     {"checkpoint": Descriptor(media_type=CRIU_TAR, digest="sha256:" + "0" * 64, size=1)},
     missing(f"content digest sha256:{'0' * 64}")),
]  # fmt: skip


async def test_creation_refused(tasks: Tasks, directory: str) -> None:
    rows = [
        Case(what, pb.CreateTaskRequest(container_id="c", **fields), answer)
        for what, fields, answer in CREATION_REFUSED
    ]
    await ask_all(tasks.create, rows)
    assert tasks.shims.shims == {}
    assert [path for path in Path(directory, "state").glob("*/[!.]*")] == []


async def test_the_runtime_of_a_request_counts(tasks: Tasks) -> None:
    await tasks.add("odd", "unknown")
    refused = unknown("invalid runtime name unknown")
    await Case("no", pb.CreateTaskRequest(container_id="odd"), refused).ask(tasks.create)
    assert await tasks.created("odd", runtime_path="/a/shim") > 0


async def test_what_a_shim_says_is_told_with_the_step(tasks: Tasks) -> None:
    async def fail() -> None:
        raise errors.PermissionDenied("OCI runtime create failed: not you")

    tasks.shims.script["create"] = fail
    text = "failed to create shim task: OCI runtime create failed: not you: permission denied"
    refused = Refused(Code.PERMISSION_DENIED, text)
    await Case("", pb.CreateTaskRequest(container_id="c"), refused).ask(tasks.create)


def process(**fields: Any) -> pb.GetResponse:
    return pb.GetResponse(process=types_pb.Process(**fields))


async def test_get_in_all_states(tasks: Tasks) -> None:
    pid = await tasks.created(stdin="i", stdout="o", stderr="e", terminal=True)
    request = pb.GetRequest(container_id="c")
    known: Any = {"id": "c", "pid": pid, "stdin": "i", "stdout": "o", "stderr": "e",
                  "terminal": True, "exited_at": NEVER}  # fmt: skip
    await Case("created", request, process(status=1, **known)).ask(tasks.get)
    await tasks.start(pb.StartRequest(container_id="c"))
    await Case("running", request, process(status=2, **known)).ask(tasks.get)
    await tasks.stub.pause(pb.PauseTaskRequest(container_id="c"))
    await Case("paused", request, process(status=4, **known)).ask(tasks.get)
    await tasks.stub.resume(pb.ResumeTaskRequest(container_id="c"))
    await Case("resumed", request, process(status=2, **known)).ask(tasks.get)
    end = tasks.shim().exit("c", 3)
    known["exited_at"] = timestamp(end.exited_at)
    await Case("ended", request, process(status=3, exit_status=3, **known)).ask(tasks.get)
    await tasks.exec("x", stdout="xo")
    request.exec_id = "x"
    added = process(id="x", pid=pid + 1, status=1, stdout="xo", exited_at=NEVER)
    await Case("an exec", request, added).ask(tasks.get)


async def test_get_asks_no_longer_than_it_should(tasks: Tasks, manager: TaskManager) -> None:
    await tasks.created()
    manager._timeouts = manager._timeouts._replace(state=0.01)
    tasks.shim().script["state"] = asyncio.Event().wait
    late = Refused(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    await Case("", pb.GetRequest(container_id="c"), late).ask(tasks.get)


async def test_list(tasks: Tasks) -> None:
    empty = pb.ListTasksResponse()
    await Case("none", pb.ListTasksRequest(), empty).ask(tasks.stub.list)
    for id in ("c", "d"):
        await tasks.created(id)
    await tasks.start(pb.StartRequest(container_id="d"))
    tasks.shim("c").script["state"] = asyncio.Event().wait  # nobody is asked
    both = pb.ListTasksResponse(
        tasks=[
            types_pb.Process(id="c", pid=1001, status=1, exited_at=NEVER),
            types_pb.Process(id="d", pid=1001, status=2, exited_at=NEVER),
        ]
    )
    for filter in ("", "id==c", "=="):  # it counts for nothing
        await Case(filter, pb.ListTasksRequest(filter=filter), both).ask(tasks.stub.list)
    elsewhere = tasks.door.stub(pb.Tasks, "other").list
    await Case("elsewhere", pb.ListTasksRequest(), empty).ask(elsewhere)
    await tasks.stub.delete(pb.DeleteTaskRequest(container_id="c"))
    del both.tasks[0]
    await Case("deleted", pb.ListTasksRequest(), both).ask(tasks.stub.list)


async def test_start_and_delete(tasks: Tasks) -> None:
    pid = await tasks.created()
    started = pb.StartResponse(pid=pid)
    start = pb.StartRequest(container_id="c")
    await Case("start", start, started).ask(tasks.start)
    await Case("again", start, unknown("cannot start a running process")).ask(tasks.start)
    delete = pb.DeleteTaskRequest(container_id="c")
    running = unknown("failed to delete task: cannot delete a running process")
    await Case("running", delete, running).ask(tasks.stub.delete)
    end = tasks.shim().exit("c", 3)
    gone = pb.DeleteResponse(pid=pid, exit_status=3, exited_at=timestamp(end.exited_at))
    await Case("ended", delete, gone).ask(tasks.stub.delete)
    again = Refused(Code.NOT_FOUND, "task c not found")
    await Case("deleted", delete, again).ask(tasks.stub.delete)


async def test_execs(tasks: Tasks) -> None:
    pid = await tasks.running()
    request = pb.ExecProcessRequest(
        container_id="c", exec_id="x", stdin="i", stdout="o", terminal=True, spec=SPEC
    )
    await Case("exec", request, Empty()).ask(tasks.stub.exec)
    asked = tasks.shim().processes["c", "x"].request
    assert (asked.stdin, asked.stdout, asked.terminal, asked.spec) == ("i", "o", True, SPEC)
    exists = Refused(Code.ALREADY_EXISTS, "id x: already exists")
    await Case("again", request, exists).ask(tasks.stub.exec)
    start = pb.StartRequest(container_id="c", exec_id="x")
    await Case("start", start, pb.StartResponse(pid=pid + 1)).ask(tasks.start)
    info = AnyMessage(
        type_url="containerd.runc.v1.ProcessDetails",
        value=runc_options_pb2.ProcessDetails(exec_id="x").SerializeToString(),
    )
    pids = pb.ListPidsResponse(
        processes=[types_pb.ProcessInfo(pid=pid), types_pb.ProcessInfo(pid=pid + 1, info=info)]
    )
    await Case("pids", pb.ListPidsRequest(container_id="c"), pids).ask(tasks.stub.list_pids)
    end = tasks.shim().exit("c", 4, "x")
    waited = pb.WaitResponse(exit_status=4, exited_at=timestamp(end.exited_at))
    await Case("wait", pb.WaitRequest(container_id="c", exec_id="x"), waited).ask(tasks.wait)
    delete = pb.DeleteProcessRequest(container_id="c", exec_id="x")
    gone = pb.DeleteResponse(id="x", pid=pid + 1, exit_status=4, exited_at=timestamp(end.exited_at))
    await Case("delete", delete, gone).ask(tasks.stub.delete_process)
    await Case("deleted", delete, NO_EXEC).ask(tasks.stub.delete_process)


async def test_exec_ids(tasks: Tasks) -> None:
    await tasks.running()
    for what, bad, text in BAD_IDENTIFIERS:
        request = pb.ExecProcessRequest(container_id="c", exec_id=bad, spec=SPEC)
        refused = invalid(f"invalid exec id {bad}: {text}")
        if not bad:
            refused = Refused(Code.INVALID_ARGUMENT, "exec id cannot be empty")
        await Case(what, request, refused).ask(tasks.stub.exec)
    assert "exec" not in tasks.shim().calls


async def test_kill(tasks: Tasks) -> None:
    await tasks.running()
    kill = pb.KillRequest(container_id="c", signal=15, all=True)
    await Case("kill", kill, Empty()).ask(tasks.stub.kill)
    finished = missing("process already finished")
    await Case("again", kill, finished).ask(tasks.stub.kill)
    ended = await tasks.wait(pb.WaitRequest(container_id="c"))
    assert ended.exit_status == 128 + 15


async def test_what_is_handed_on(tasks: Tasks) -> None:
    await tasks.running()
    resize = pb.ResizePtyRequest(container_id="c", width=80, height=24)
    await Case("resize", resize, Empty()).ask(tasks.stub.resize_pty)
    update = pb.UpdateTaskRequest(container_id="c", resources=RESOURCES, annotations={"a": "b"})
    await Case("update", update, Empty()).ask(tasks.stub.update)
    close = pb.CloseIORequest(container_id="c")
    await Case("close nothing", close, Empty()).ask(tasks.stub.close_io)
    requests = tasks.shim().requests
    assert sorted(requests) == ["resize_pty", "update"]
    assert (requests["resize_pty"].width, requests["resize_pty"].height) == (80, 24)
    assert requests["update"].resources == RESOURCES
    assert requests["update"].annotations == {"a": "b"}
    close.stdin = True
    await Case("close", close, Empty()).ask(tasks.stub.close_io)
    assert requests["close_io"].stdin


async def test_metrics(tasks: Tasks) -> None:
    for id in ("c", "d"):
        await tasks.created(id)

    async def measured(*filters: str) -> list[str]:
        answer = await tasks.stub.metrics(pb.MetricsRequest(filters=filters))
        for metric in answer.metrics:
            assert (metric.data.type_url, metric.data.value) == ("stats", b"1")
            assert metric.timestamp.seconds > 0
        return [metric.id for metric in answer.metrics]

    assert await measured() == ["c", "d"]
    assert await measured("id==c") == ["c"]
    assert await measured("id!=c", "id==c") == ["c", "d"]
    assert await measured("namespace==ns,id~=d") == ["d"]
    assert await measured("namespace==other") == []
    assert await measured("labels.x") == []
    bad = pb.MetricsRequest(filters=["id=c"])
    refused = Refused(Code.INVALID_ARGUMENT, re.compile("^filters: parse error"))
    await Case("", bad, refused).ask(tasks.stub.metrics)
    await tasks.shim("c").die()
    assert await measured() == ["d"]


async def test_wait(tasks: Tasks) -> None:
    await tasks.running()
    waiting = [asyncio.create_task(tasks.wait(pb.WaitRequest(container_id="c"))) for _ in "123"]
    await until(lambda: "wait" in tasks.shim().calls)
    waiting[0].cancel()
    end = tasks.shim().exit("c", 3)
    expected = pb.WaitResponse(exit_status=3, exited_at=timestamp(end.exited_at))
    assert [await one for one in waiting[1:]] == [expected, expected]
    await Case("afterwards", pb.WaitRequest(container_id="c"), expected).ask(tasks.wait)
    assert tasks.shim().calls.count("wait") == 1


async def test_a_wait_ends_with_the_shim(tasks: Tasks) -> None:
    await tasks.running()
    wait = Case("", pb.WaitRequest(container_id="c"), unknown("ttrpc: closed"))
    waiting = asyncio.create_task(wait.ask(tasks.wait))
    await until(lambda: "wait" in tasks.shim().calls)
    await tasks.shim().die()
    await waiting
    await until(lambda: len(tasks.door.world.exchange.seen) == 2)
    assert [topic for _, topic, _ in tasks.door.told()] == ["/tasks/exit", "/tasks/delete"]
    gone = Refused(Code.NOT_FOUND, "task c not found")
    await Case("", pb.GetRequest(container_id="c"), gone).ask(tasks.get)


async def test_a_wait_ends_with_the_task(tasks: Tasks) -> None:
    await tasks.created()
    waiting = asyncio.create_task(tasks.wait(pb.WaitRequest(container_id="c")))
    await until(lambda: "wait" in tasks.shim().calls)
    await tasks.stub.delete(pb.DeleteTaskRequest(container_id="c"))
    with pytest.raises(errors.Error):
        await waiting


async def test_checkpoints_are_kept_by_a_lease(tasks: Tasks, directory: str) -> None:
    await tasks.running()
    leases = tasks.door.stub(leases_pb2.Leases)
    await leases.create(leases_pb2.CreateRequest(id="l"))
    leased = tasks.door.stub(pb.Tasks, lease="l")
    made = (await leased.checkpoint(pb.CheckpointTaskRequest(container_id="c"))).descriptors
    assert [one.media_type for one in made] == [CRIU_TAR, SPEC_TYPE]
    found = await leases.list_resources(leases_pb2.ListResourcesRequest(id="l"))
    assert {(r.type, r.id) for r in found.resources} == {("content", one.digest) for one in made}
    content = tasks.door.stub(content_pb2.Content)
    for one in made:
        info = (await content.info(content_pb2.InfoRequest(digest=one.digest))).info
        assert (info.size, dict(info.labels)) == (one.size, {})
    await Case("a lease that is not there", pb.CheckpointTaskRequest(container_id="c"),
               missing("lease does not exist")).ask(
        tasks.door.stub(pb.Tasks, lease="none").checkpoint
    )  # fmt: skip
    where = pb.CheckpointTaskRequest(
        container_id="c", options=runc("CheckpointOptions", image_path=directory)
    )
    await Case("a directory", where, pb.CheckpointTaskResponse()).ask(tasks.stub.checkpoint)
    assert Path(directory, "pages").read_bytes() == b"pages of c"


CHECKPOINT_REFUSED = [
    ("another's options", runc("Options"), unknown(f"invalid task checkpoint option for {RUNC}")),
    ("unknown options", AnyMessage(type_url="x"),
     unknown(f"invalid task checkpoint option for {RUNC}")),
]  # fmt: skip


async def test_checkpoint_refused(tasks: Tasks) -> None:
    await tasks.created()
    rows = [
        Case(what, pb.CheckpointTaskRequest(container_id="c", options=options), answer)
        for what, options, answer in CHECKPOINT_REFUSED
    ]
    await ask_all(tasks.stub.checkpoint, rows)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
