"""The tasks service: what it asks of the runtime, and how it puts the answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cradled import errors
from cradled.api import tasks_pb2 as pb
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Exit, Process, Status, Stdio
from cradled.core.values import AnyValue, Descriptor
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.services.tasks import TasksService

SCOPE = Scope("ns", "")
YEAR_ONE = -62135596800


class FakeContainers:
    async def get_record(self, id: str) -> bytes:
        if id != "c":
            raise errors.NotFound(f'container "{id}" in namespace "ns"')
        return b""


class FakeDatabase:
    def scoped(self, scope: Scope) -> Any:
        assert scope == SCOPE
        return SimpleNamespace(containers=FakeContainers())


class Recorder:
    """Notes each call and gives the answer prepared for its method."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any) -> Any:
            self.calls.append((name, args))
            return self.answers.get(name)

        return method


@pytest.fixture
def runtime() -> Recorder:
    return Recorder()


@pytest.fixture
def tasks(runtime: Recorder) -> Any:
    router = Router()
    db: Any = FakeDatabase()
    manager: Any = runtime
    router.add(pb.Tasks, TasksService(db, manager))
    return Stub(InProcess(router), pb.Tasks, [("containerd-namespace", "ns")])


async def test_create(tasks: Any, runtime: Recorder) -> None:
    runtime.answers["create"] = 42
    request = pb.CreateTaskRequest(container_id="c", stdout="/o", terminal=True, runtime_path="r")
    request.rootfs.add(type="overlay", source="overlay", options=["a=b"])
    request.options.type_url, request.options.value = "T", b"v"
    reply = await tasks.create(request)
    assert (reply.container_id, reply.pid) == ("c", 42)
    wanted = CreateTask(
        "c",
        (Mount("overlay", "overlay", ("a=b",)),),
        Stdio("", "/o", "", terminal=True),
        None,
        AnyValue("T", b"v"),
        "r",
    )
    assert runtime.calls == [("create", (SCOPE, wanted))]


async def test_start_and_kill_pass_on_the_process(tasks: Any, runtime: Recorder) -> None:
    runtime.answers["start"] = 7
    assert (await tasks.start(pb.StartRequest(container_id="c", exec_id="e"))).pid == 7
    await tasks.kill(pb.KillRequest(container_id="c", exec_id="e", signal=9, all=True))
    assert runtime.calls == [
        ("start", (SCOPE, "c", "e")),
        ("kill", (SCOPE, "c", 9, "e", True)),
    ]


async def test_a_running_process_exits_in_year_one(tasks: Any, runtime: Recorder) -> None:
    runtime.answers["get"] = Process("c", "c", 7, Status.RUNNING, Stdio(stdout="/o"))
    process = (await tasks.get(pb.GetRequest(container_id="c"))).process
    assert (process.id, process.pid, process.status, process.stdout) == ("c", 7, 2, "/o")
    assert process.container_id == ""
    assert process.exited_at.seconds == YEAR_ONE


async def test_list(tasks: Any, runtime: Recorder) -> None:
    runtime.answers["list"] = [Process("c", "c", 7, Status.STOPPED, exit_status=3, exited_at=10**9)]
    (process,) = (await tasks.list(pb.ListTasksRequest(filter="ignored"))).tasks
    assert (process.id, process.exit_status, process.exited_at.seconds) == ("c", 3, 1)
    assert process.container_id == ""


async def test_exits(tasks: Any, runtime: Recorder) -> None:
    end = Exit(7, 137, 5 * 10**9)
    runtime.answers.update(delete=end, delete_process=end, wait=end)
    deleted = await tasks.delete(pb.DeleteTaskRequest(container_id="c"))
    assert (deleted.id, deleted.pid, deleted.exit_status) == ("", 7, 137)
    deleted = await tasks.delete_process(pb.DeleteProcessRequest(container_id="c", exec_id="e"))
    assert (deleted.id, deleted.pid, deleted.exited_at.seconds) == ("e", 7, 5)
    waited = await tasks.wait(pb.WaitRequest(container_id="c"))
    assert (waited.exit_status, waited.exited_at.seconds) == (137, 5)


async def test_exec(tasks: Any, runtime: Recorder) -> None:
    request = pb.ExecProcessRequest(container_id="c", exec_id="e", stdin="/i")
    request.spec.type_url, request.spec.value = "P", b"{}"
    await tasks.exec(request)
    assert runtime.calls == [("exec", (SCOPE, "c", "e", Stdio("/i"), AnyValue("P", b"{}")))]
    with pytest.raises(errors.InvalidArgument, match=r"^exec id cannot be empty"):
        await tasks.exec(pb.ExecProcessRequest(container_id="c"))


async def test_pids(tasks: Any, runtime: Recorder) -> None:
    runtime.answers["pids"] = [(1, None), (2, AnyValue("D", b"d"))]
    first, second = (await tasks.list_pids(pb.ListPidsRequest(container_id="c"))).processes
    assert (first.pid, first.HasField("info")) == (1, False)
    assert (second.pid, second.info.type_url, second.info.value) == (2, "D", b"d")


async def test_metrics(tasks: Any, runtime: Recorder) -> None:
    runtime.answers["metrics"] = [("c", 3 * 10**9, AnyValue("M", b"m"))]
    (metric,) = (await tasks.metrics(pb.MetricsRequest(filters=["id==c"]))).metrics
    assert (metric.id, metric.timestamp.seconds, metric.data.type_url) == ("c", 3, "M")
    assert runtime.calls == [("metrics", (SCOPE, ["id==c"]))]


async def test_update_checkpoint_and_io(tasks: Any, runtime: Recorder) -> None:
    request = pb.UpdateTaskRequest(container_id="c", annotations={"a": "b"})
    request.resources.type_url = "R"
    await tasks.update(request)
    runtime.answers["checkpoint"] = [Descriptor("m", "d", 5)]
    reply = await tasks.checkpoint(pb.CheckpointTaskRequest(container_id="c"))
    assert [(d.media_type, d.digest, d.size) for d in reply.descriptors] == [("m", "d", 5)]
    await tasks.resize_pty(pb.ResizePtyRequest(container_id="c", exec_id="e", width=8, height=9))
    await tasks.close_io(pb.CloseIORequest(container_id="c", stdin=True))
    await tasks.pause(pb.PauseTaskRequest(container_id="c"))
    await tasks.resume(pb.ResumeTaskRequest(container_id="c"))
    assert runtime.calls == [
        ("update", (SCOPE, "c", AnyValue("R"), {"a": "b"})),
        ("checkpoint", (SCOPE, "c", None)),
        ("resize_pty", (SCOPE, "c", "e", 8, 9)),
        ("close_io", (SCOPE, "c", "", True)),
        ("pause", (SCOPE, "c")),
        ("resume", (SCOPE, "c")),
    ]


@pytest.mark.parametrize(
    ("rpc", "request_type"),
    [
        ("start", pb.StartRequest),
        ("delete", pb.DeleteTaskRequest),
        ("delete_process", pb.DeleteProcessRequest),
        ("get", pb.GetRequest),
        ("kill", pb.KillRequest),
        ("resize_pty", pb.ResizePtyRequest),
        ("close_io", pb.CloseIORequest),
        ("pause", pb.PauseTaskRequest),
        ("resume", pb.ResumeTaskRequest),
        ("list_pids", pb.ListPidsRequest),
        ("checkpoint", pb.CheckpointTaskRequest),
        ("update", pb.UpdateTaskRequest),
        ("wait", pb.WaitRequest),
    ],
)
async def test_a_missing_container_is_told_first(
    tasks: Any, runtime: Recorder, rpc: str, request_type: Any
) -> None:
    with pytest.raises(errors.NotFound, match=r'^container "x" in namespace "ns": not found$'):
        await getattr(tasks, rpc)(request_type(container_id="x"))
    assert runtime.calls == []
