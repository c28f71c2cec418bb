"""The shim's Task service on real containers: what it answers, what it tells, in which order."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.pairings import RUNTIMES, Missing
from harness.shims import Shim, Status, eventually, options, reply, request, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS = 2, 3, 5, 6
FAILED_PRECONDITION, UNIMPLEMENTED = 9, 12


@pytest.fixture(scope="module", params=["forked", "program", "crun", "newer-runc", "newer-crun"])
def shim(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shim]:
    """Started in two ways, and with all runtimes."""
    runtime = RUNTIMES.get(request.param, RUNTIMES["runc"])
    how = {"forked": request.param != "program", "wrapper": runtime.wrapper}
    try:
        program = runtime.find()
    except Missing as error:
        pytest.skip(str(error))
    with running(tmp_path_factory.mktemp("shim"), runtime=program, **how) as shim:
        yield shim


def refusal(shim: Shim, method: str, **fields: object) -> tuple[int, str]:
    with pytest.raises(Status) as caught:
        shim.call(method, **fields)
    return caught.value.code, caught.value.message


def events(shim: Shim, id: str) -> list[str]:
    return [topic[7:] for topic, event in shim.ear.heard if event.container_id == id]


def test_life(shim: Shim) -> None:
    pid = shim.create("life", "/bin/sh", "-c", "exit 7")
    assert shim.state("life").status == CREATED
    assert shim.state("life").pid == pid == shim.connect("life").task_pid
    assert shim.connect("life").shim_pid == shim.pid
    assert shim.call("Start", id="life").pid == pid
    assert shim.wait("life") == 7
    state = shim.state("life")
    assert (state.status, state.exit_status) == (STOPPED, 7)
    exit = shim.ear.wait("exit", count=events(shim, "life").count("exit") or 1)
    deleted = shim.call("Delete", id="life")
    assert (deleted.pid, deleted.exit_status) == (pid, 7)
    assert deleted.exited_at == state.exited_at
    eventually(lambda: "delete" in events(shim, "life"))
    assert events(shim, "life") == ["create", "start", "exit", "delete"]
    mine = [event for topic, event in shim.ear.heard if event.container_id == "life"]
    assert (mine[2].id, mine[2].pid, mine[2].exit_status) == ("life", pid, 7)
    assert mine[2].exited_at == deleted.exited_at
    assert (mine[3].id, mine[3].exit_status) == ("", 7)
    assert shim.ear.namespaces == {shim.mark}
    assert exit
    assert refusal(shim, "State", id="life") == (NOT_FOUND, "container not created: not found")


def test_what_the_bundle_says(shim: Shim) -> None:
    shim.create("files", "/bin/sh", "-c", "exit 3", options=options(
        binary_name="runc", no_new_keyring=True, root=f'{shim.directory}/"runc"'))  # fmt: skip
    bundle = shim.bundles / "files"
    assert json.loads((bundle / "options.json").read_text()) == {
        "binary_name": "runc",
        "no_new_keyring": True,
        "root": f'{shim.directory}/"runc"',
    }
    assert (bundle / "runtime").read_text() == "runc"
    assert not (bundle / "exit.json").exists()
    pid = shim.call("Start", id="files").pid
    shim.wait("files")
    told = json.loads((bundle / "exit.json").read_text())
    assert (told["pid"], told["exit_status"]) == (pid, 3)
    shim.call("Delete", id="files")


@pytest.mark.parametrize(("number", "status"), [(9, 137), (15, 143)])
def test_kill(shim: Shim, number: int, status: int) -> None:
    id = f"kill{number}"
    shim.create(id, "/bin/sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.01; done")
    shim.call("Start", id=id)
    shim.exec(id, "ready", "/bin/sh", "-c", "until grep -q sleep /proc/*/cmdline; do :; done")
    shim.wait(id, "ready")
    shim.call("Kill", id=id, signal=number)
    assert shim.wait(id) == status
    assert refusal(shim, "Kill", id=id, signal=9) == (
        NOT_FOUND,
        "process already finished: not found",
    )
    shim.call("Delete", id=id)


def test_kill_all(shim: Shim) -> None:
    shim.create("all", "/bin/sh", "-c", "sleep 1000 & sleep 1000; true")
    shim.call("Start", id="all")
    eventually(lambda: len(shim.call("Pids", id="all").processes) == 3)
    shim.call("Kill", id="all", signal=9, all=True)
    assert shim.wait("all") == 137
    shim.call("Delete", id="all")


def test_refusals(shim: Shim) -> None:
    state = NOT_FOUND, "container not created: not found"
    for method in ("State", "Start", "Delete", "Kill", "Pause", "Resume", "Pids", "Stats", "Wait",
                   "CloseIO", "ResizePty", "Exec", "Update", "Checkpoint"):  # fmt: skip
        assert refusal(shim, method, id="none") == state
    assert shim.connect("none").task_pid == 0

    shim.create("ref", "/bin/sleep", "1000")
    assert refusal(shim, "Create", id="ref", bundle=str(shim.bundles / "ref"))[0] == ALREADY_EXISTS
    assert refusal(shim, "Pause", id="ref") == (UNKNOWN, "cannot pause task in created state")
    assert refusal(shim, "Resume", id="ref") == (UNKNOWN, "cannot resume task in created state")
    assert refusal(shim, "Checkpoint", id="ref")[1] == "cannot checkpoint a task in created state"
    shim.call("Start", id="ref")
    assert refusal(shim, "Start", id="ref") == (UNKNOWN, "cannot start a running process")
    assert refusal(shim, "Delete", id="ref") == (UNKNOWN, "cannot delete a running process")
    assert refusal(shim, "Resume", id="ref") == (UNKNOWN, "cannot resume a running process")
    shim.call("Pause", id="ref")
    assert shim.state("ref").status == PAUSED
    assert refusal(shim, "Pause", id="ref") == (UNKNOWN, "cannot pause a paused container")
    assert refusal(shim, "Start", id="ref") == (UNKNOWN, "cannot start a paused process")
    assert refusal(shim, "Delete", id="ref") == (UNKNOWN, "cannot delete a paused process")
    assert refusal(shim, "Exec", id="ref", exec_id="e")[1] == "cannot exec in a paused state"
    shim.call("Resume", id="ref")
    assert refusal(shim, "State", id="ref", exec_id="e") == (
        NOT_FOUND,
        "process does not exist e: not found",
    )
    shim.add_exec("ref", "e", "/bin/true")
    assert refusal(shim, "Exec", id="ref", exec_id="e") == (
        ALREADY_EXISTS,
        "id e: already exists",
    )
    assert refusal(shim, "Kill", id="ref", exec_id="e", signal=9) == (
        FAILED_PRECONDITION,
        "process not created: failed precondition",
    )
    shim.call("Kill", id="ref", signal=9)
    shim.wait("ref")
    assert refusal(shim, "Start", id="ref") == (UNKNOWN, "cannot start a stopped process")
    assert refusal(shim, "Start", id="ref", exec_id="e") == (
        FAILED_PRECONDITION,
        "container ref init process is not running: failed precondition",
    )
    assert refusal(shim, "Pause", id="ref")[1] == "cannot pause a stopped container"
    assert refusal(shim, "Exec", id="ref", exec_id="f")[1] == "cannot exec in a stopped state"
    shim.call("Delete", id="ref")


def test_unknown_services_and_methods(shim: Shim) -> None:
    for service, method, text in (
        ("containerd.task.v9.Task", "State", "service containerd.task.v9.Task"),
        ("containerd.task.v2.Task", "Nothing", "method Nothing"),
    ):
        shim.channel.service = service
        try:
            with pytest.raises(Status) as caught:
                shim.channel.call(method, _Raw(b""), None)
        finally:
            shim.channel.service = "containerd.task.v3.Task"
        assert (caught.value.code, caught.value.message) == (UNIMPLEMENTED, text)


class _Raw:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data


def test_version_2_is_served_too(shim: Shim) -> None:
    shim.channel.service = "containerd.task.v2.Task"
    try:
        assert shim.run("v2", "/bin/true") == 0
    finally:
        shim.channel.service = "containerd.task.v3.Task"


def test_damaged_request(shim: Shim) -> None:
    stream = shim.channel.send("State", _Raw(b"\x0a\x05x"))
    with pytest.raises(Status, match="unmarshal request error: ") as caught:
        shim.channel.receive(stream, None)
    assert caught.value.code == 3


def test_runtime_errors(shim: Shim) -> None:
    code, text = refusal_of_create(shim, "noexe", "/bin/nothing")
    assert code == UNKNOWN
    assert text.startswith("OCI runtime create failed: ")
    assert "no such file or directory" in text.lower()  # so do clients read it
    code, text = refusal_of_create(shim, "noruntime", options=options(binary_name="no-runc"))
    assert text.startswith("OCI runtime create failed: unable to retrieve OCI runtime error (open ")
    assert text.endswith('exec: "no-runc": executable file not found in $PATH')
    _, text = refusal_of_create(shim, "nofile", options=options(binary_name="/no/runc"))
    assert text.endswith("fork/exec /no/runc: no such file or directory")
    _, text = refusal_of_create(shim, "false", options=options(binary_name="false"))
    assert "failed: unable to retrieve OCI runtime error (open " in text
    assert text.endswith("no such file or directory): false did not terminate successfully: "
                         "exit status 1")  # fmt: skip
    with pytest.raises(Status, match=r"options of type other\.Options"):
        shim.create("other", options={"type_url": "other.Options"})


def refusal_of_create(shim: Shim, id: str, *args: str, **fields: object) -> tuple[int, str]:
    with pytest.raises(Status) as caught:
        shim.create(id, *args, **fields)
    assert events(shim, id) == []
    return caught.value.code, caught.value.message


def test_exec_errors(shim: Shim) -> None:
    shim.create("xerr", "/bin/sleep", "1000")
    shim.call("Start", id="xerr")
    with pytest.raises(Status, match=r"^OCI runtime exec failed: .*[nN]o such file") as caught:
        shim.exec("xerr", "x", "/bin/nothing")
    assert caught.value.code == UNKNOWN
    assert shim.wait("xerr", "x") == 0
    assert shim.call("Delete", id="xerr", exec_id="x").pid == 0
    assert not list((shim.bundles / "xerr").glob("*.process"))
    shim.call("Kill", id="xerr", signal=9)
    shim.wait("xerr")
    shim.call("Delete", id="xerr")


def test_delete_of_what_was_never_started(shim: Shim) -> None:
    pid = shim.create("unborn", "/bin/true")
    deleted = shim.call("Delete", id="unborn")
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    eventually(lambda: "delete" in events(shim, "unborn"))
    assert events(shim, "unborn") == ["create", "exit", "delete"]


def test_exec(shim: Shim) -> None:
    shim.create("x", "/bin/sleep", "1000")
    shim.call("Start", id="x")
    pid = shim.exec("x", "e1", "/bin/sh", "-c", "exit 5")
    assert shim.wait("x", "e1") == 5
    assert shim.state("x", "e1").status == STOPPED
    deleted = shim.call("Delete", id="x", exec_id="e1")
    assert (deleted.pid, deleted.exit_status) == (pid, 5)
    assert refusal(shim, "State", id="x", exec_id="e1")[0] == NOT_FOUND
    exec_events = ["exec-added", "exec-started", "exit"]
    eventually(lambda: events(shim, "x")[2:] == exec_events)
    added, started, exit = [e for _, e in shim.ear.heard if e.container_id == "x"][2:]
    assert (added.exec_id, started.exec_id, started.pid) == ("e1", "e1", pid)
    assert (exit.id, exit.pid, exit.exit_status) == ("e1", pid, 5)

    other = shim.exec("x", "e2", "/bin/sleep", "1000")
    processes = {p.pid: p.info for p in shim.call("Pids", id="x").processes}
    assert processes.keys() == {shim.state("x").pid, other}
    assert processes[other].type_url == "containerd.runc.v1.ProcessDetails"
    assert processes[other].value == b"\n\x02e2"
    assert refusal(shim, "Delete", id="x", exec_id="e2")[1] == "cannot delete a running process"
    shim.call("Kill", id="x", exec_id="e2", signal=15)
    assert shim.wait("x", "e2") == 143
    assert refusal(shim, "Kill", id="x", exec_id="e2", signal=9)[0] == NOT_FOUND
    shim.call("Kill", id="x", signal=9)
    shim.wait("x")
    shim.call("Delete", id="x")


def test_short_execs_are_all_told(shim: Shim) -> None:
    """A process that ends before its pid is known is not lost."""
    shim.create("short", "/bin/sleep", "1000")
    shim.call("Start", id="short")
    for number in range(8):
        shim.add_exec("short", f"e{number}", "/bin/sh", "-c", f"exit {number}")
    streams = [shim.channel.send("Start", _start("short", f"e{number}")) for number in range(8)]
    for stream in streams:
        shim.channel.receive(stream, _Any)
    assert [shim.wait("short", f"e{number}") for number in range(8)] == list(range(8))
    shim.call("Kill", id="short", signal=9)
    shim.wait("short")
    eventually(lambda: events(shim, "short").count("exit") == 9)
    order = [(topic[7:], getattr(e, "exec_id", "") or getattr(e, "id", ""))
             for topic, e in shim.ear.heard if e.container_id == "short"]  # fmt: skip
    for number in range(8):
        name = f"e{number}"
        assert order.index(("exec-started", name)) < order.index(("exit", name))
    assert order[-1] == ("exit", "short")
    shim.call("Delete", id="short")


def _start(id: str, exec_id: str):
    from cradled.api.task_v3_pb2 import StartRequest

    return StartRequest(id=id, exec_id=exec_id)


class _Any:
    @staticmethod
    def FromString(data: bytes) -> bytes:
        return data


@pytest.mark.parametrize(
    "namespaces", [("pid", "mount", "uts"), ("mount", "uts")], ids=["private", "shared"]
)
def test_init_takes_everything_with_it_and_is_told_last(shim: Shim, namespaces) -> None:
    id = "last" + str(len(namespaces))
    shim.create(id, "/bin/sh", "-c", "sleep 1000 & wait", spec={"namespaces": namespaces})
    shim.call("Start", id=id)
    pids = {shim.exec(id, f"e{n}", "/bin/sleep", "1000") for n in range(3)}
    eventually(lambda: len(shim.call("Pids", id=id).processes) == 5)
    pids |= {process.pid for process in shim.call("Pids", id=id).processes}
    shim.call("Kill", id=id, signal=9)
    assert shim.wait(id) == 137
    # Those that were killed with it are dying, if not dead; nobody waits for what was no exec.
    eventually(lambda: not shim.call("Pids", id=id).processes)
    eventually(lambda: not [pid for pid in pids if os.path.exists(f"/proc/{pid}")])
    assert all(shim.state(id, f"e{n}").exit_status == 137 for n in range(3))
    eventually(lambda: events(shim, id).count("exit") == 4)
    ends = [e.id for topic, e in shim.ear.heard if topic == "/tasks/exit" and e.container_id == id]
    assert sorted(ends[:3]) == ["e0", "e1", "e2"]
    assert ends[3] == id
    shim.call("Delete", id=id)


def test_exit_comes_after_start(shim: Shim) -> None:
    for number in range(5):
        id = f"quick{number}"
        shim.run(id, "/bin/true")
        eventually(lambda id=id: "delete" in events(shim, id))
        assert events(shim, id) == ["create", "start", "exit", "delete"]


def test_paused_processes_can_be_killed(shim: Shim) -> None:
    shim.create("frozen", "/bin/sleep", "1000")
    shim.call("Start", id="frozen")
    shim.call("Pause", id="frozen")
    shim.call("Kill", id="frozen", signal=9)
    assert shim.wait("frozen") == 137
    eventually(lambda: events(shim, "frozen")[:3] == ["create", "start", "paused"])
    shim.call("Delete", id="frozen")


def test_wait_by_many(shim: Shim) -> None:
    shim.create("many", "/bin/sleep", "1000")
    shim.call("Start", id="many")
    streams = [shim.channel.send("Wait", _start("many", "")) for _ in range(3)]
    shim.call("Kill", id="many", signal=9)
    replies = {shim.channel.receive(stream, _Any) for stream in streams}
    assert len(replies) == 1
    shim.call("Delete", id="many")


def test_shutdown_is_refused_while_there_are_containers(shim: Shim) -> None:
    shim.create("stay", "/bin/true")
    shim.call("Shutdown", id="stay", now=True)
    assert shim.state("stay").status == CREATED
    shim.call("Delete", id="stay")


def test_rootfs_is_mounted_and_unmounted(shim: Shim, tmp_path: Path) -> None:
    bundle = shim.bundle("mnt", "/bin/sh", "-c", "echo new > /new; exit $(wc -c < /new)")
    lower = tmp_path / "lower"
    os.rename(bundle / "rootfs", lower)
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    (bundle / "rootfs").mkdir()
    layers = [f"lowerdir={lower}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    mounts = [{"type": "overlay", "source": "overlay", "options": layers}]
    assert shim.run("mnt", rootfs=mounts) == 4
    assert (tmp_path / "upper" / "new").read_text() == "new\n"
    assert not os.path.ismount(bundle / "rootfs")
    eventually(lambda: "delete" in events(shim, "mnt"))
    event = next(e for topic, e in shim.ear.heard if e.container_id == "mnt")
    assert [m.type for m in event.rootfs] == ["overlay"]

    bundle = shim.bundle("mnt2")
    (bundle / "config.json").write_text("{}")
    with pytest.raises(Status, match="OCI runtime create failed: "):
        shim.create("mnt2", rootfs=mounts)
    assert not os.path.ismount(bundle / "rootfs")
    mounts[0]["options"] = ["lowerdir=/no/such/layer"]
    with pytest.raises(Status, match=r"failed to mount rootfs component: .*no such file"):
        shim.create("mnt2", rootfs=mounts)


def test_signals_and_environment_are_at_their_defaults_inside(shim: Shim) -> None:
    shim.create("sig", "/bin/sleep", "1000")
    shim.call("Start", id="sig")
    for pid in (shim.state("sig").pid, shim.exec("sig", "e", "/bin/sleep", "1000")):
        eventually(lambda pid=pid: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        status = dict(
            line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("Sig")
        )  # fmt: skip
        # glibc's posix_spawn leaves its own signals 32 and 33 ignored in what it starts.
        assert int(status["SigIgn"], 16) & 0x7FFFFFFF == 0
        assert int(status["SigBlk"], 16) == 0
        open_fds = os.listdir(f"/proc/{pid}/fd")
        assert sorted(open_fds) == ["0", "1", "2"]
        # What tells the runtime how to run is not told to what it runs.
        assert b"GOMAXPROCS" not in Path(f"/proc/{pid}/environ").read_bytes()
    shim.call("Kill", id="sig", signal=9)
    shim.wait("sig")
    shim.call("Delete", id="sig")


def test_stacks_on_sigusr1(shim: Shim) -> None:
    os.kill(shim.pid, signal.SIGUSR1)
    text = shim.log()
    while b"most recent call first" not in text:
        text += shim.log()


def test_execs_are_paused_with_their_container(shim: Shim) -> None:
    shim.create("frozen", "/bin/sleep", "1000")
    shim.call("Start", id="frozen")
    shim.exec("frozen", "e", "/bin/sleep", "1000")
    shim.call("Pause", id="frozen")
    found = shim.state("frozen", "e")
    assert (found.status, found.id, found.exec_id) == (PAUSED, "e", "e")
    shim.call("Resume", id="frozen")
    assert shim.state("frozen", "e").status == RUNNING
    shim.call("Kill", id="frozen", signal=9)
    shim.wait("frozen")
    shim.call("Delete", id="frozen")


def test_one_that_is_being_created_is_deleted_later(shim: Shim, tmp_path: Path) -> None:
    """Who has waited too long for it must not take it for gone, and need not come again."""
    runtime = tmp_path / "slow"
    runtime.write_text(
        f'#!/bin/sh\nif echo "$@" | grep -q " create "; then touch {tmp_path}/asked\n'
        f'while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; fi; exec runc "$@"\n'
    )
    runtime.chmod(0o755)
    given = options(binary_name=str(runtime), root=shim.runc_root)
    fields = {"id": "slow", "bundle": str(shim.bundle("slow", "/bin/true")), "options": given}
    creating = shim.channel.send("Create", request("Create", **fields))
    eventually((tmp_path / "asked").exists)
    code, text = refusal(shim, "Delete", id="slow")
    assert (code, text) == (
        FAILED_PRECONDITION,
        "container slow is being created: failed precondition",
    )
    (tmp_path / "go").touch()
    with pytest.raises(Status, match="slow was deleted while it was created"):
        shim.channel.receive(creating, reply("Create"))
    assert refusal(shim, "State", id="slow")[0] == NOT_FOUND
    eventually(lambda: events(shim, "slow") == ["create", "exit", "delete"])


def test_damaged_options(shim: Shim) -> None:
    damaged = {"type_url": "containerd.runc.v1.Options", "value": b"\xff\xff"}
    code, text = refusal(shim, "Create", id="dam", bundle="/nowhere", options=damaged)
    assert (code, text.partition(":")[0]) == (INVALID_ARGUMENT, "options")


@pytest.mark.parametrize("number", [99, 1 << 31])
def test_no_such_signal(shim: Shim, number: int) -> None:
    id = f"signal{number}"
    shim.create(id, "/bin/sleep", "1000")
    code, text = refusal(shim, "Kill", id=id, signal=number)
    assert (code, text.partition(":")[0]) == (UNKNOWN, "unknown error after kill")
    shim.call("Delete", id=id)


def test_nothing_is_said_about_the_end_of_what_never_ran(shim: Shim) -> None:
    shim.create("never", "/bin/true", checkpoint="/nowhere/checkpoint")
    assert not shim.call("Delete", id="never").HasField("exited_at")
    assert not eventually(lambda: _deleted(shim, "never")).HasField("exited_at")


def _deleted(shim: Shim, id: str) -> Any:
    return next((e for t, e in shim.ear.heard if t == "/tasks/delete" and e.container_id == id), 0)
