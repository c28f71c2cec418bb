"""Calls of the Tasks service in one order on the daemon and on containerd: the same answers.

Numbers of processes, times of day and paths are masked. Debian's containerd is older than the level
of the reference, and not right everywhere: where ours differs on purpose, the label is in
``BETTER`` with the reason.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from harness.contract import Refused, answered
from harness.daemon import Daemon
from harness.shims import PROCESS, make_rootfs, make_spec

from cradled.api import containers_pb2, runc_options_pb2
from cradled.api import tasks_pb2 as pb
from cradled.api.types_pb2 import Descriptor, Mount
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.rpc import grpc_client
from cradled.rpc.service import snake_case
from cradled.rpc.stub import Stub

RUNC = "io.containerd.runc.v2"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/"
RESOURCES = AnyMessage(type_url=f"{SPEC}LinuxResources", value=b'{"pids":{"limit":50}}')

BETTER = {
    "a bad filter": "is an invalid argument",
    "damaged options": "are an invalid argument",
    "unknown options": "are told as any of a wrong type, not as something missing",
    "checkpoint with unknown options": "as above",
    "runtime: a relative path": "newer originals do not say by whom the name was read",
    "runtime: a word": "as above",
    "runtime: no first part": "is no name, in newer originals",
    "runtime: not installed": "as a relative path",
    "runtime: a path to nothing": "as above",
    "a checkpoint that is not there": "is not found",
    "no root file system": "the text shows no structure of Go's",
    "update with half a value": "names the call that failed",
    "kill by no signal": "need not run the runtime to find out",
    "stopped: Start of an exec": "has a class, as newer originals have it",
    "delete c": "tells how it ended",
    "delete d": "as above",
    "never started 0": "as above, to those who wait",
    "never started 1": "as above",
}

Step = tuple[str, str, Any]
"""A label, an rpc, its request."""


def runc(kind: str, **fields: Any) -> AnyMessage:
    value = getattr(runc_options_pb2, kind)(**fields).SerializeToString()
    return AnyMessage(type_url=f"containerd.runc.v1.{kind}", value=value)


def process(*args: str) -> AnyMessage:
    value = json.dumps({**PROCESS, "args": list(args)}).encode()
    return AnyMessage(type_url=f"{SPEC}Process", value=value)


def exec_(id: str, exec_id: str, *args: str, **fields: Any) -> pb.ExecProcessRequest:
    spec = process(*args)
    return pb.ExecProcessRequest(container_id=id, exec_id=exec_id, spec=spec, **fields)


def about(id: str) -> Iterator[tuple[str, Any]]:
    """Every rpc about one task, as it is asked where nothing can come of it."""
    yield "Start", pb.StartRequest(container_id=id)
    yield "Delete", pb.DeleteTaskRequest(container_id=id)
    yield "DeleteProcess", pb.DeleteProcessRequest(container_id=id, exec_id="x")
    yield "Get", pb.GetRequest(container_id=id)
    yield "Kill", pb.KillRequest(container_id=id, signal=9)
    yield "Exec", exec_(id, "x", "true")
    yield "ResizePty", pb.ResizePtyRequest(container_id=id, width=1, height=1)
    yield "CloseIO", pb.CloseIORequest(container_id=id, stdin=True)
    yield "Pause", pb.PauseTaskRequest(container_id=id)
    yield "Resume", pb.ResumeTaskRequest(container_id=id)
    yield "ListPids", pb.ListPidsRequest(container_id=id)
    yield "Checkpoint", pb.CheckpointTaskRequest(container_id=id)
    yield "Update", pb.UpdateTaskRequest(container_id=id, resources=RESOURCES)
    yield "Wait", pb.WaitRequest(container_id=id)


def execs(id: str) -> Iterator[tuple[str, Any]]:
    """Every rpc that takes an exec, for one that is not there."""
    yield "Start", pb.StartRequest(container_id=id, exec_id="x")
    yield "DeleteProcess", pb.DeleteProcessRequest(container_id=id, exec_id="x")
    yield "Get", pb.GetRequest(container_id=id, exec_id="x")
    yield "Kill", pb.KillRequest(container_id=id, exec_id="x", signal=9)
    yield "ResizePty", pb.ResizePtyRequest(container_id=id, exec_id="x", width=1, height=1)
    yield "CloseIO", pb.CloseIORequest(container_id=id, exec_id="x", stdin=True)
    yield "Wait", pb.WaitRequest(container_id=id, exec_id="x")


def labelled(where: str, calls: Iterator[tuple[str, Any]]) -> Iterator[Step]:
    for rpc, request in calls:
        yield f"{where}: {rpc}", rpc, request


def nothing() -> Iterator[Step]:
    """There is no such container, or it has no task."""
    yield "no container: Create", "Create", pb.CreateTaskRequest(container_id="none")
    yield from labelled("no container", about("none"))
    yield from labelled("no task", about("idle"))
    yield from labelled("no id", about(""))
    yield "nothing to list", "List", pb.ListTasksRequest()
    yield "nothing to measure", "Metrics", pb.MetricsRequest()
    yield "a bad filter", "Metrics", pb.MetricsRequest(filters=["=="])
    yield "an exec without id", "Exec", exec_("none", "", "true")


def creations(create: Callable[..., pb.CreateTaskRequest]) -> Iterator[Step]:
    """What is refused."""
    yield "options of a checkpoint", "Create", create("idle", options=runc("CheckpointOptions"))
    garbage = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff")
    yield "damaged options", "Create", create("idle", options=garbage)
    yield "unknown options", "Create", create("idle", options=AnyMessage(type_url="some.Thing"))
    for what, runtime in (
        ("a relative path", "a/b"),
        ("a word", "runc"),
        ("no first part", ".v2"),
        ("not installed", "io.containerd.nothing.v9"),
        ("a path to nothing", "/nonexistent/shim"),
    ):
        yield f"runtime: {what}", "Create", create("idle", runtime_path=runtime)
    missing = runc("Options", binary_name="no-runc")
    yield "a missing OCI runtime", "Create", create("idle", options=missing)
    blob = Descriptor(media_type="text/plain", digest="sha256:" + "0" * 64, size=1)
    yield "a checkpoint of another type", "Create", create("idle", checkpoint=blob)
    blob.media_type = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
    yield "a checkpoint that is not there", "Create", create("idle", checkpoint=blob)
    wrong = Mount(type="bind", source="/nonexistent/rootfs", options=["rbind"])
    yield "no root file system", "Create", pb.CreateTaskRequest(container_id="idle", rootfs=[wrong])
    yield "a program that is not there", "Create", create("astray")
    yield "a spec that is none", "Create", create("senseless")


def life(create: Callable[..., pb.CreateTaskRequest]) -> Iterator[Step]:
    """One task through all its states, and in each all that can be asked."""
    id = "c"
    yield "create", "Create", create(id)
    yield "create again", "Create", create(id)
    yield from labelled("created", (c for c in about(id) if c[0] in {"Get", "Pause", "Resume",
        "ListPids", "Checkpoint", "ResizePty", "CloseIO"}))  # fmt: skip
    yield from labelled("created, no exec", (c for c in execs(id) if c[0] != "CloseIO"))
    yield "list", "List", pb.ListTasksRequest(filter="nothing")
    yield "exec in created", "Exec", exec_(id, "early", "/bin/true")
    yield "start exec in created", "Start", pb.StartRequest(container_id=id, exec_id="early")
    yield "start", "Start", pb.StartRequest(container_id=id)
    yield "start again", "Start", pb.StartRequest(container_id=id)
    yield "running: Get", "Get", pb.GetRequest(container_id=id)
    yield "running: Delete", "Delete", pb.DeleteTaskRequest(container_id=id)
    yield "running: Resume", "Resume", pb.ResumeTaskRequest(container_id=id)
    yield "running: Update", "Update", pb.UpdateTaskRequest(container_id=id, resources=RESOURCES)
    odd = AnyMessage(type_url=f"{SPEC}LinuxResources", value=b"{")
    yield "update with half a value", "Update", pb.UpdateTaskRequest(container_id=id, resources=odd)
    yield from execution(id)
    yield "pause", "Pause", pb.PauseTaskRequest(container_id=id)
    yield "paused: Get", "Get", pb.GetRequest(container_id=id)
    yield "paused: Pause", "Pause", pb.PauseTaskRequest(container_id=id)
    yield "paused: Start", "Start", pb.StartRequest(container_id=id)
    yield "paused: Delete", "Delete", pb.DeleteTaskRequest(container_id=id)
    yield "paused: Exec", "Exec", exec_(id, "p", "/bin/true")
    yield "paused: List", "List", pb.ListTasksRequest()
    yield "resume", "Resume", pb.ResumeTaskRequest(container_id=id)
    for what, url in (("options", "Options"), ("process", "ProcessDetails")):
        request = pb.CheckpointTaskRequest(container_id=id, options=runc(url))
        yield f"checkpoint with another's {what}", "Checkpoint", request
    unknown = AnyMessage(type_url="some.Thing")
    request = pb.CheckpointTaskRequest(container_id=id, options=unknown)
    yield "checkpoint with unknown options", "Checkpoint", request
    yield "kill by no signal", "Kill", pb.KillRequest(container_id=id, signal=99)
    yield "kill", "Kill", pb.KillRequest(container_id=id, signal=9, all=True)
    yield "wait", "Wait", pb.WaitRequest(container_id=id)
    yield from labelled("stopped", (c for c in about(id) if c[0] not in {"Delete", "Exec"}))
    yield "stopped: List", "List", pb.ListTasksRequest()
    yield "stopped: Metrics", "Metrics", pb.MetricsRequest()
    yield "stopped: Exec", "Exec", exec_(id, "s", "/bin/true")
    yield "stopped: Start of an exec", "Start", pb.StartRequest(container_id=id, exec_id="s")
    yield "delete", "Delete", pb.DeleteTaskRequest(container_id=id)
    yield "delete again", "Delete", pb.DeleteTaskRequest(container_id=id)
    yield "deleted: Get", "Get", pb.GetRequest(container_id=id)


def execution(id: str) -> Iterator[Step]:
    """An exec of a running task."""
    yield from labelled("running, no exec", execs(id))
    for what, exec_id in (("bad", "/"), ("long", "x" * 77)):
        yield f"a {what} exec id", "Exec", exec_(id, exec_id, "true")
    yield "exec", "Exec", exec_(id, "e", "/bin/sh", "-c", "exit 3", terminal=False)
    yield "exec again", "Exec", exec_(id, "e", "/bin/true")
    yield "exec: Get", "Get", pb.GetRequest(container_id=id, exec_id="e")
    yield "exec: Kill", "Kill", pb.KillRequest(container_id=id, exec_id="e", signal=9)
    yield "exec: Start", "Start", pb.StartRequest(container_id=id, exec_id="e")
    yield "exec: Wait", "Wait", pb.WaitRequest(container_id=id, exec_id="e")
    yield "exec ended: Get", "Get", pb.GetRequest(container_id=id, exec_id="e")
    yield "exec ended: Kill", "Kill", pb.KillRequest(container_id=id, exec_id="e", signal=9)
    yield "exec ended: Start", "Start", pb.StartRequest(container_id=id, exec_id="e")
    gone = pb.DeleteProcessRequest(container_id=id, exec_id="e")
    yield "exec: DeleteProcess", "DeleteProcess", gone
    yield "exec: DeleteProcess again", "DeleteProcess", gone
    yield "an exec of nothing", "Exec", exec_(id, "n", "/nothing")
    yield "start an exec of nothing", "Start", pb.StartRequest(container_id=id, exec_id="n")
    yield "an exec that stays", "Exec", exec_(id, "s", "/bin/sleep", "1000")
    yield "start an exec that stays", "Start", pb.StartRequest(container_id=id, exec_id="s")
    running = pb.DeleteProcessRequest(container_id=id, exec_id="s")
    yield "delete a running exec", "DeleteProcess", running
    yield "pids with execs", "ListPids", pb.ListPidsRequest(container_id=id)
    yield "kill an exec", "Kill", pb.KillRequest(container_id=id, exec_id="s", signal=15)
    yield "a signal's status", "Wait", pb.WaitRequest(container_id=id, exec_id="s")


def brief(create: Callable[..., pb.CreateTaskRequest]) -> Iterator[Step]:
    """A task that is deleted without having run, and metrics of two."""
    for id in ("c", "d"):
        yield f"create {id}", "Create", create(id)
    for filters in (
        [],
        ["id==c"],
        ["id!=c"],
        ["id~=c|d"],
        ["namespace==other"],
        ["id==c", "id==d"],
    ):
        yield f"measure {filters}", "Metrics", pb.MetricsRequest(filters=filters)
    for id in ("c", "d"):
        yield f"delete {id}", "Delete", pb.DeleteTaskRequest(container_id=id)


class Player:
    """Asks one daemon, and writes down what it answers."""

    def __init__(self, daemon: Daemon, channel: grpc_client.GrpcChannel, rootfs: Path) -> None:
        headers = [("containerd-namespace", daemon.namespace)]
        self.daemon = daemon
        self.containers = Stub(channel, containers_pb2.Containers, headers)
        self.tasks = Stub(channel, pb.Tasks, headers)
        self.mounts = [Mount(type="bind", source=str(rootfs), options=["rbind", "rw"])]
        self.script: dict[str, str] = {}

    async def add(self, id: str, *args: str, spec: bytes = b"") -> None:
        made = spec or json.dumps(make_spec(f"/{self.daemon.namespace}/{id}", args)).encode()
        container = containers_pb2.Container(
            id=id,
            runtime=containers_pb2.Container.Runtime(name=RUNC),
            spec=AnyMessage(type_url=f"{SPEC}Spec", value=made),
        )
        await self.containers.create(containers_pb2.CreateContainerRequest(container=container))

    async def clear(self) -> None:
        listed = await self.containers.list(containers_pb2.ListContainersRequest())
        for container in listed.containers:
            await self.containers.delete(containers_pb2.DeleteContainerRequest(id=container.id))

    def create(self, id: str, **fields: Any) -> pb.CreateTaskRequest:
        return pb.CreateTaskRequest(container_id=id, rootfs=self.mounts, **fields)

    async def play(self, steps: Iterator[Step]) -> None:
        for label, rpc, request in steps:
            assert label not in self.script, label
            answer = await answered(getattr(self.tasks, snake_case(rpc)), request)
            self.script[label] = self.masked(answer)

    def masked(self, answer: Any) -> str:
        if isinstance(answer, Refused):
            # Newer originals do not put these words behind what has no class.
            text = f"{answer.code.name}: {str(answer.text).removesuffix(': unknown')}"
        else:
            if isinstance(answer, pb.MetricsResponse):
                answer.metrics.sort(key=lambda metric: metric.id)
            if isinstance(answer, pb.ListPidsResponse):
                answer.processes.sort(key=lambda process: process.info.type_url)
            text = text_format.MessageToString(answer)
        text = text.replace(self.daemon.namespace, "<ns>").replace(str(self.daemon.directory), "")
        text = re.sub(r"\b(pid): [1-9]\d*", r"\1: <pid>", text)
        text = re.sub(r"seconds: [1-9]\d*\n(\s*nanos: \d+)?", "seconds: <now>", text)
        return re.sub(r'value: ".*"', "value: <...>", text)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("o")
    daemon = Daemon(directory, "containerd")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


@pytest.fixture
async def players(
    empty_daemon: Daemon, original: Daemon, tmp_path: Path
) -> AsyncIterator[tuple[Player, Player]]:
    make_rootfs(tmp_path / "rootfs")
    async with (
        await grpc_client.connect(str(empty_daemon.socket)) as ours,
        await grpc_client.connect(str(original.socket)) as theirs,
    ):
        both = (
            Player(empty_daemon, ours, tmp_path / "rootfs"),
            Player(original, theirs, tmp_path / "rootfs"),
        )
        for player in both:
            for id in ("idle", "c", "d"):
                await player.add(id, "/bin/sleep", "1000")
            await player.add("astray", "/nothing")
            await player.add("senseless", spec=b"{}")
        yield both
        for player in both:
            await player.clear()


@pytest.mark.parametrize("steps", [creations, life, brief], ids=lambda s: s.__name__)
async def test_tasks(players: tuple[Player, Player], steps: Any) -> None:
    for player in players:
        await player.play(steps(player.create))
    same(*players)


async def test_nothing_there(players: tuple[Player, Player]) -> None:
    for player in players:
        await player.play(nothing())
    same(*players)


def same(ours: Player, theirs: Player) -> None:
    """Their answers are ours, but for those that are better."""
    different = {
        label: (text, theirs.script[label])
        for label, text in ours.script.items()
        if text != theirs.script[label]
    }
    wrong = [
        f"{label}:\n  ours   {mine!r}\n  theirs {other!r}"
        for label, (mine, other) in different.items()
        if label not in BETTER
    ]
    assert not wrong, "\n".join(wrong)
    assert {label for label in BETTER if label in ours.script} == set(different)


async def test_waits_end(players: tuple[Player, Player]) -> None:
    """With the process, or with the task that never had one; however many there are."""
    for player in players:
        for id, label in (("c", "killed"), ("d", "never started")):
            await player.play(iter([(f"create {id} to wait", "Create", player.create(id))]))
            if id == "c":
                await player.tasks.start(pb.StartRequest(container_id=id))
            request = pb.WaitRequest(container_id=id)
            waits = [asyncio.create_task(answered(player.tasks.wait, request)) for _ in "12"]
            await asyncio.sleep(0)
            await player.tasks.get(pb.GetRequest(container_id=id))  # they are there by now
            if id == "c":
                await player.tasks.kill(pb.KillRequest(container_id=id, signal=9))
                await waits[0]
            await player.tasks.delete(pb.DeleteTaskRequest(container_id=id))
            async with asyncio.timeout(20):
                for number, wait in enumerate(waits):
                    player.script[f"{label} {number}"] = player.masked(await wait)
    same(*players)
