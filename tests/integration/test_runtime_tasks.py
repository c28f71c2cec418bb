"""Tasks of the daemon, end to end below the API: our shim by fork, and the original's by exec."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import leaks
from harness.shims import Fifos
from harness.tasks import GO, OWN, Node, running

from cradled import errors
from cradled.aio import process
from cradled.api import runc_options_pb2
from cradled.core.mount import Mount
from cradled.core.tasks import Status, Stdio
from cradled.core.values import AnyValue
from cradled.runtime import rootfs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
has_go_shim = pytest.mark.skipif(not os.path.exists(GO), reason="needs containerd's runc shim")

pytestmark = needs_root

FOREVER = ("/bin/sleep", "1000")


@pytest.fixture(params=[OWN, pytest.param(GO, marks=has_go_shim)], ids=["own", "go"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    async with running(request.param) as node:
        yield node


@pytest.fixture
async def own() -> AsyncIterator[Node]:
    async with running(OWN) as node:
        yield node


async def test_life(node: Node) -> None:
    pid = await node.create("life", "/bin/sh", "-c", "exit 7")
    tasks, scope = node.tasks, node.scope
    created = await tasks.get(scope, "life")
    assert (created.pid, created.status, created.id) == (pid, Status.CREATED, "life")
    assert await tasks.list(scope) == [created]
    assert await tasks.start(scope, "life") == pid
    end = await tasks.wait(scope, "life")
    assert (end.pid, end.status) == (pid, 7)
    stopped = await tasks.get(scope, "life")
    assert (stopped.status, stopped.exit_status) == (Status.STOPPED, 7)
    assert await tasks.list(scope) == [stopped]
    assert await tasks.delete(scope, "life") == end
    with pytest.raises(errors.NotFound, match=r"^task life not found$"):
        await tasks.get(scope, "life")
    *_, exited, deleted = await node.heard("life", "create", "start", "exit", "delete")
    assert (exited.id, exited.pid, exited.exit_status) == ("life", pid, 7)
    assert (deleted.id, deleted.pid, deleted.exit_status) == ("", pid, 7)


def overlay(node: Node, *more: str) -> Mount:
    directories = [node.root.parent / name for name in ("upper", "work")]
    for directory in directories:
        directory.mkdir(exist_ok=True)
    options = (f"lowerdir={node.rootfs}", f"upperdir={directories[0]}", f"workdir={directories[1]}")
    return Mount("overlay", "overlay", (*options, *more))


async def test_an_overlay_is_used_again_at_once(node: Node) -> None:
    for number in range(3):
        mounts = (overlay(node, "index=off"),)
        await node.create("o", "/bin/sh", "-c", "echo >> /new; exit $(wc -l < /new)", rootfs=mounts)
        await node.tasks.start(node.scope, "o")
        assert (await node.tasks.wait(node.scope, "o")).status == number + 1
        await node.tasks.delete(node.scope, "o")
        assert leaks.mounts_below(str(node.bundle("o"))) == []


async def test_a_deletion_does_not_wait_for_the_disk(
    own: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, close = threading.Event(), rootfs._close

    def slowly(fd: int) -> None:
        gate.wait()
        close(fd)

    monkeypatch.setattr(rootfs, "_close", slowly)
    mounts = (overlay(own),)  # with an index a second mount of the upper directory would fail
    await own.create("o", *FOREVER, rootfs=mounts)
    await own.tasks.delete(own.scope, "o")
    assert leaks.mounts_below(str(own.bundle("o"))) == []
    again = asyncio.ensure_future(own.create("o", *FOREVER, rootfs=mounts))
    await own.create("other", *FOREVER)
    assert not again.done()
    gate.set()
    assert await again > 0
    for id in ("o", "other"):
        await own.tasks.delete(own.scope, id)


async def test_the_bundle(node: Node) -> None:
    await node.create("b", *FOREVER)
    bundle = node.bundle("b")
    spec = node.containers["b"].spec
    assert spec is not None
    assert (bundle / "config.json").read_bytes() == spec.value
    assert bundle.stat().st_mode & 0o7777 == 0o700
    assert (bundle / "work").resolve() == node.root / node.mark / "b"
    assert (bundle / "log").is_fifo()
    assert leaks.mounts_below(str(bundle)) == [str(bundle / "rootfs")]
    program = (bundle / "shim-binary-path").read_text()
    assert program == GO if node.runtime == GO else program.endswith("/containerd-shim-cradled-v2")
    saved = node.saved("b")
    assert saved["address"].startswith("unix://")
    assert (saved["version"], saved["protocol"]) == (2 if node.runtime == GO else 3, "ttrpc")
    socket = Path(saved["address"].removeprefix("unix://"))
    assert socket.stat().st_mode & 0o777 == 0o600
    await node.tasks.delete(node.scope, "b")  # never started
    assert not bundle.exists()
    assert not (node.root / node.mark / "b").exists()


async def test_mapped_mounts_need_a_runtime_that_says_it_can(own: Node) -> None:
    own.add("m", *FOREVER)
    spec = own.containers["m"].spec
    assert spec is not None
    values = json.loads(spec.value)
    mapping = [{"containerID": 0, "hostID": 1000, "size": 1}]
    mount = {"type": "bind", "source": "/", "destination": "/tmp", "options": ["rbind"]}
    values["mounts"].append({**mount, "uidMappings": mapping, "gidMappings": mapping})
    own.change("m", spec=AnyValue(spec.type_url, json.dumps(values).encode()))
    done = await process.run(["runc", "features"], env=os.environ)
    told = json.loads(done.stdout)
    if (told.get("mountExtensions") or {}).get("idmap", {}).get("enabled"):
        text = "OCI runtime create failed"  # it says it can; not here, without a user namespace
    else:
        text = "^idmap mounts not supported: mountExtensions.idmap is missing"
    with pytest.raises(errors.Error, match=text):
        await own.create("m")
    assert not own.bundle("m").exists()


async def test_execs(node: Node) -> None:
    tasks, scope = node.tasks, node.scope
    await node.run("e", *FOREVER)
    pid = await node.exec("e", "one", "/bin/sh", "-c", "exit 3")
    waits = await asyncio.gather(*(tasks.wait(scope, "e", "one") for _ in range(3)))
    assert {(end.pid, end.status) for end in waits} == {(pid, 3)}
    state = await tasks.get(scope, "e", "one")
    assert (state.id, state.container_id, state.status) == ("one", "e", Status.STOPPED)
    end = await tasks.delete_process(scope, "e", "one")
    assert (end.pid, end.status) == (pid, 3)
    with pytest.raises(errors.NotFound):
        await tasks.wait(scope, "e", "one")

    await node.exec("e", "one", *FOREVER)  # the id is free again
    with pytest.raises(errors.AlreadyExists):
        await tasks.exec(scope, "e", "one", Stdio(), AnyValue("x"))
    with pytest.raises(errors.InvalidArgument, match="invalid exec id /: identifier"):
        await tasks.exec(scope, "e", "/", Stdio(), AnyValue("x"))
    found = dict(await tasks.pids(scope, "e"))
    assert len(found) == 2
    assert [info.type_url for info in found.values() if info] == [
        "containerd.runc.v1.ProcessDetails"
    ]
    await tasks.kill(scope, "e", signal.SIGKILL, "one")
    assert (await tasks.wait(scope, "e", "one")).status == 137
    await tasks.delete_process(scope, "e", "one")
    assert await node.end("e") == 137
    topics = ["create", "start", *["exec-added", "exec-started", "exit"] * 2, "exit", "delete"]
    await node.heard("e", *topics)


async def test_pause_update_and_metrics(node: Node) -> None:
    tasks, scope = node.tasks, node.scope
    await node.run("p", *FOREVER)
    await tasks.pause(scope, "p")
    assert (await tasks.get(scope, "p")).status == Status.PAUSED
    assert [p.status for p in await tasks.list(scope)] == [Status.PAUSED]
    with pytest.raises(errors.Error, match="cannot pause a paused container"):
        await tasks.pause(scope, "p")
    await tasks.resume(scope, "p")
    assert [p.status for p in await tasks.list(scope)] == [Status.RUNNING]
    resources = b'{"pids":{"limit":77}}'
    kind = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    await tasks.update(scope, "p", AnyValue(kind, resources), {})
    ((id, when, data),) = await tasks.metrics(scope, ["id==p"])
    assert id == "p"
    assert when > 0
    assert data.type_url.startswith("io.containerd.cgroups.v")
    assert await tasks.metrics(scope, ["id==q"]) == []
    assert len(await tasks.metrics(scope, [f"namespace=={node.mark}"])) == 1
    await tasks.resize_pty(scope, "p", "", 80, 24)
    await node.end("p")


async def test_standard_streams(node: Node) -> None:
    tasks, scope = node.tasks, node.scope
    fifos = Fifos(node.directory / "fifos", "stdin", "stdout", "stderr")
    node.add("io", "/bin/sh", "-c", "cat; echo done >&2")
    stdio = Stdio(fifos.paths["stdin"], fifos.paths["stdout"], fifos.paths["stderr"])
    await node.create("io", stdio=stdio)
    assert [p.stdio for p in await tasks.list(scope)] == [stdio]
    await tasks.start(scope, "io")
    stdin = fifos.open_stdin()
    os.write(stdin, b"hello")
    assert await asyncio.to_thread(fifos.read, "stdout", b"hello") == b"hello"
    fifos.close("stdin")
    await tasks.close_io(scope, "io", "", False)  # says nothing, does nothing
    assert (await tasks.get(scope, "io")).status == Status.RUNNING
    await tasks.close_io(scope, "io", "", True)
    assert (await tasks.wait(scope, "io")).status == 0
    assert await asyncio.to_thread(fifos.read, "stderr", b"done\n") == b"done\n"
    await tasks.delete(scope, "io")
    fifos.close()


async def test_many_at_once(node: Node) -> None:
    async def life(number: int) -> int:
        await node.create(f"c{number}", "/bin/sh", "-c", f"exit {number}")
        await node.tasks.start(node.scope, f"c{number}")
        await node.tasks.wait(node.scope, f"c{number}")
        return (await node.tasks.delete(node.scope, f"c{number}")).status

    assert await asyncio.gather(*map(life, range(6))) == list(range(6))
    assert await node.tasks.list(node.scope) == []


async def test_a_task_is_made_once(node: Node) -> None:
    node.add("twice", *FOREVER)
    results = await asyncio.gather(
        *(node.create("twice") for _ in range(3)), return_exceptions=True
    )
    made = [r for r in results if isinstance(r, int)]
    refused = [str(r) for r in results if isinstance(r, errors.AlreadyExists)]
    assert len(made) == 1
    assert refused == ["task twice: already exists"] * 2
    await node.tasks.start(node.scope, "twice")
    with pytest.raises(errors.Error, match="cannot delete a running process"):
        await node.tasks.delete(node.scope, "twice")
    await node.end("twice")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("binary", "no-such-runc"),
        ("program", "executable file not found"),
        ("rootfs", "failed to mount rootfs component"),
        ("spec", "failed to create shim task: "),
    ],
)
async def test_a_failed_creation_leaves_nothing(node: Node, change: str, text: str) -> None:
    node.add("bad", "no-such-program" if change == "program" else "/bin/true")
    more: dict[str, Any] = {}
    if change == "binary":
        options = runc_options_pb2.Options(
            binary_name="no-such-runc", root=str(node.directory / "runc")
        )
        more["options"] = AnyValue("containerd.runc.v1.Options", options.SerializeToString())
    elif change == "spec":
        node.change("bad", spec=AnyValue("x", b'{"ociVersion":"1.0.2"}'))
    elif change == "rootfs":
        missing = Mount("bind", str(node.directory / "missing"), ("rbind",))
        more["rootfs"] = (missing,)
    with pytest.raises(errors.Error, match=r"^failed to create shim task: ") as caught:
        await node.create("bad", **more)
    assert text in str(caught.value)
    await node.settled()
    assert node.told("bad") == []
    assert await node.tasks.list(node.scope) == []
    # And it can be made well right after.
    del node.containers["bad"]
    await node.create("bad", "/bin/true")
    await node.tasks.delete(node.scope, "bad")


@has_go_shim
async def test_a_shim_that_fails_untidily_leaves_nothing() -> None:
    """The original's of old fails on a lone stdout when the container has been created."""
    async with running(GO) as node:
        fifos = Fifos(node.directory / "fifos", "stdout")
        node.add("x", *FOREVER)
        with pytest.raises(errors.Error, match="failed to start io pipe copy"):
            await node.create("x", stdio=Stdio("", fifos.paths["stdout"], ""))
        fifos.close()
        await node.settled()


@pytest.mark.parametrize(
    ("runtime", "text"),
    [
        ("nodots", "invalid runtime name nodots"),
        ("a/b.c", "invalid runtime name a/b.c"),
        (".v2", "invalid runtime name .v2"),
        ("io.containerd.nosuch.v7", 'not installed "containerd-shim-nosuch-v7": file does not'),
        ("/no/such/shim", "invalid custom binary path: "),
        ("/bin/false", "failed to start shim: start failed: "),
    ],
)
async def test_runtimes_that_cannot_be(own: Node, runtime: str, text: str) -> None:
    own.add("x", *FOREVER)
    with pytest.raises(errors.Error) as caught:
        await own.create("x", runtime=runtime)
    assert text in str(caught.value)
    await own.settled()


async def test_options_of_another_runtime_are_refused(own: Node) -> None:
    own.add("x", *FOREVER)
    with pytest.raises(errors.Error, match=r"^invalid task create option for "):
        await own.create("x", options=AnyValue("runtimeoptions.v1.Options", b""))
    assert own.left() == []


@pytest.mark.parametrize("stage", ["", "config.json", "bootstrap.json", "options.json"])
async def test_a_cancelled_creation_leaves_nothing(node: Node, stage: str) -> None:
    node.add("c", *FOREVER)
    creation = asyncio.create_task(node.create("c"))
    while not (node.bundle("c") / stage).exists():  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    await node.settled()
    assert await node.tasks.list(node.scope) == []


async def test_a_deletion_goes_on_without_its_caller(node: Node) -> None:
    await node.create("d", *FOREVER)
    deletion = asyncio.create_task(node.tasks.delete(node.scope, "d"))
    await asyncio.sleep(0)
    deletion.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deletion
    await node.settled()
    assert await node.tasks.list(node.scope) == []


async def test_a_group_shares_a_shim(node: Node) -> None:
    for id in ("one", "two"):
        node.add(id, *FOREVER, annotations={"io.containerd.runc.v2.group": "pod"})
    await asyncio.gather(node.create("one"), node.create("two"))
    assert node.saved("one")["address"] == node.saved("two")["address"]
    assert await node.shim_pid("one") == await node.shim_pid("two")
    await node.tasks.delete(node.scope, "one")
    assert (await node.tasks.get(node.scope, "two")).status == Status.CREATED
    await node.tasks.start(node.scope, "two")
    await node.end("two")


async def test_a_shim_that_dies_takes_its_task_along(node: Node) -> None:
    pid = await node.run("lost", *FOREVER)
    waiting = asyncio.create_task(node.tasks.wait(node.scope, "lost"))
    await asyncio.sleep(0)
    shim = await node.shim_pid("lost")
    os.kill(shim, signal.SIGKILL)
    with pytest.raises(errors.Error, match=r"^ttrpc: closed$"):
        await waiting
    *_, exited, deleted = await node.heard("lost", "create", "start", "exit", "delete")
    assert (exited.id, exited.pid, exited.exit_status) == ("lost", pid, 137)
    assert (deleted.id, deleted.pid, deleted.exit_status) == ("", pid, 137)
    await node.settled()
    assert await node.tasks.list(node.scope) == []
    assert await node.run("lost") != pid
    await node.end("lost")


async def test_what_a_forked_shim_is(own: Node) -> None:
    group = f"/sys/fs/cgroup/pids/{own.mark}-shims"
    if not os.path.isdir("/sys/fs/cgroup/pids"):  # one hierarchy
        group = f"/sys/fs/cgroup/{own.mark}-shims"
    os.mkdir(group)
    options = runc_options_pb2.Options(shim_cgroup=f"/{own.mark}-shims")
    kind = "containerd.runc.v1.Options"
    own.add("in", *FOREVER, options=AnyValue(kind, options.SerializeToString()))
    await own.create("in")
    shim = await own.shim_pid("in")
    proc = Path(f"/proc/{shim}")
    assert Path(group, "cgroup.procs").read_text().split() == [str(shim)]
    assert proc.joinpath("comm").read_text() == "cradled-shim\n"
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(proc.joinpath("oom_score_adj").read_text()) == ours + 1
    assert os.getsid(shim) == os.getpgid(shim) == shim
    await own.tasks.delete(own.scope, "in")
    await own.settled()
    os.rmdir(group)

    options.shim_cgroup = "/no/such/group"
    own.add("out", *FOREVER, options=AnyValue(kind, options.SerializeToString()))
    with pytest.raises(errors.NotFound, match="shim cgroup /no/such/group"):
        await own.create("out")
    await own.settled()


async def test_a_zygote_that_dies_is_replaced(own: Node) -> None:
    await own.run("before", *FOREVER)
    zygote = own.zygote.pid
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    await own.run("after", *FOREVER)
    assert own.zygote.pid != zygote
    assert {p.status for p in await own.tasks.list(own.scope)} == {Status.RUNNING}
