"""The library on a daemon and in process: the same calls, the same answers, nothing left."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import Daemon
from harness.images import busybox_image

import cradled
from cradled.aio import threads
from cradled.client import Client, Process, Status
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"
NAME = "docker.io/library/busybox:test"


@contextlib.asynccontextmanager
async def over_a_socket(directory: Path) -> AsyncIterator[Client]:
    daemon = Daemon(directory, kind="cradled")
    daemon.start()
    try:
        async with cradled.connect(str(daemon.socket), namespace=daemon.namespace) as client:
            yield client
    finally:
        daemon.destroy()


@contextlib.asynccontextmanager
async def in_process(directory: Path) -> AsyncIterator[Client]:
    before = _process_state()
    namespace = f"lib{os.urandom(4).hex()}"
    root, state = directory / "root", directory / "state"
    async with cradled.Runtime(root, state, namespace=namespace) as client:
        assert _process_state() == before
        yield client
    assert _process_state() == before
    leaks.assert_settled(namespace, str(directory))
    leaks.remove_parents(namespace)


def _process_state() -> object:
    """What a library must leave as it finds it."""
    os.umask(mask := os.umask(0))
    numbers = signal.valid_signals() - {signal.SIGINT}  # that one is the runner's of the test
    handlers = [signal.getsignal(number) for number in numbers]
    return mask, os.getcwd(), handlers


@pytest.fixture(params=[over_a_socket, in_process], ids=["socket", "inprocess"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    directory = tmp_path / "d"
    directory.mkdir()
    async with request.param(directory) as client:
        await client.images.import_(busybox_image(NAME).write_oci_layout(tmp_path / "b.tar"))
        yield client
        assert await client.containers.list() == []
        assert list(client.session.fifo_dir.glob("*")) == []
    threads.close()


async def test_run(client: Client) -> None:
    result = await client.run(IMAGE, ["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in")
    assert (result.status, result.stdout, result.stderr) == (3, b"in", b"err\n")
    assert (await client.run(IMAGE, ["echo", "hello"])).output == "hello\n"
    big = b"x" * (1 << 20)
    assert (await client.run(IMAGE, ["cat"], input=big)).stdout == big
    await client.run(IMAGE, ["true"], name="kept", remove=False)
    await (await client.containers.get("kept")).remove()


async def test_the_long_form(client: Client) -> None:
    container = await client.containers.create(IMAGE, ["cat"], name="box", env={"A": "1"})
    with pytest.raises(AlreadyExists, match='container "box"'):
        await client.containers.create(IMAGE, name="box")
    with pytest.raises(NotFound):
        await container.task()
    task = await container.start(stdin=True)
    assert task.stdin is not None
    assert task.stdout is not None
    task.stdin.write(b"ping\n")
    await task.stdin.drain()
    assert await task.stdout.readline() == b"ping\n"
    state = await task.state()
    assert (state.status, state.pid) == (Status.RUNNING, task.pid)
    assert task.pid in await task.pids()

    process = await task.exec(["sh", "-c", "echo $A; exit 5"], env={"A": "2"})
    result = await process.communicate()
    assert (result.status, result.stdout) == (5, b"2\n")

    await task.pause()
    assert (await task.state()).status == Status.PAUSED
    await task.resume()
    with pytest.raises(FailedPrecondition, match="is running"):
        await container.remove()
    again = await (await client.containers.get("box")).task()
    assert again.pid == task.pid
    await task.close_stdin()
    assert (await task.wait()).status == 0
    assert await task.stdout.read() == b""
    await task.aclose()
    await container.remove()
    with pytest.raises(NotFound):
        await client.containers.get("box")


async def test_attach_to_a_task_of_somebody_else(client: Client) -> None:
    container = await client.containers.create(IMAGE, ["sh", "-c", "read x; echo got $x"])
    starter = await container.start(stdin=True)
    task = await (await client.containers.get(container.id)).task()
    await task.attach()
    assert task.stdin is not None
    assert task.stdout is not None
    assert starter.stdout is not None
    task.stdin.write(b"it\n")
    lines = [asyncio.ensure_future(t.stdout.read()) for t in (task, starter) if t.stdout]
    await task.wait()
    assert b"got it\n" in await asyncio.gather(*lines)
    await task.aclose()
    await starter.aclose()
    await container.remove()


async def test_output_to_a_file(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "a dir" / "out.log"
    container = await client.containers.create(IMAGE, ["sh", "-c", "echo out; echo err >&2"])
    task = await container.start(output=log)
    assert (await task.wait()).status == 0
    await task.delete()
    assert sorted(log.read_text().split()) == ["err", "out"]
    with pytest.raises(NotFound):
        await task.state()
    await container.remove()


async def test_cancelling_a_run_kills_it(client: Client) -> None:
    run = asyncio.ensure_future(client.run(IMAGE, ["sleep", "1000"], name="long"))
    while (await _status(client, "long")) != Status.RUNNING:
        await asyncio.wait((run,), timeout=0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    with pytest.raises(NotFound):
        await client.containers.get("long")


async def _status(client: Client, name: str) -> Status:
    try:
        return (await (await (await client.containers.get(name)).task()).state()).status
    except NotFound:
        return Status.UNKNOWN


async def test_a_command_that_is_not_there(client: Client) -> None:
    with pytest.raises(Exception, match="executable file not found"):
        await client.run(IMAGE, ["nosuch"])
    with pytest.raises(NotFound, match='image "nosuch:1"'):
        await client.run("nosuch:1")
    with pytest.raises(InvalidArgument, match="identifier"):
        await client.run(IMAGE, name="bad name")


async def test_events(client: Client) -> None:
    seen = []
    exited = asyncio.Event()

    async def watch() -> None:
        async for event in client.events('topic~="^/(tasks|containers)/"'):
            seen.append((event.topic, event.fields))
            if event.topic == "/tasks/delete":
                exited.set()

    watcher = asyncio.ensure_future(watch())
    while not exited.is_set():  # a subscription begins some time after it was asked for
        seen.clear()
        await client.run(IMAGE, ["sh", "-c", "exit 4"], name="seen")
        await asyncio.sleep(0.05)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    (end,) = [fields for topic, fields in seen if topic == "/tasks/exit"][-1:]
    assert (end["container_id"], end["exit_status"]) == ("seen", 4)


async def test_images(client: Client, tmp_path: Path) -> None:
    steps: list[str] = []
    archive = busybox_image("registry.example/x/y:1").write_docker_archive(tmp_path / "docker.tar")
    with archive.open("rb") as file:
        (image,) = await client.images.import_(file, tell=lambda step: steps.append(step.event))
    assert image.name == "registry.example/x/y:1"
    assert "saved" in steps
    data = archive.read_bytes()
    pieces = (data[start : start + 10_000] for start in range(0, len(data), 10_000))
    assert [i.name for i in await client.images.import_(pieces)] == ["registry.example/x/y:1"]
    contents = await client.images.contents(image)
    assert len(contents.manifest.layers) == 2
    tagged = await client.images.tag("registry.example/x/y:1", "y")
    assert (tagged.name, tagged.target) == ("docker.io/library/y:latest", image.target)
    assert (await client.images.get("y")).name == tagged.name
    assert {i.name for i in await client.images.list()} == {NAME, image.name, tagged.name}
    await client.images.remove("y", sync=True)
    await client.images.remove("registry.example/x/y:1", sync=True)
    with pytest.raises(NotFound):
        await client.images.get("y")
    assert (await client.run(IMAGE, ["echo", "still here"])).status == 0


async def test_pack(client: Client, tmp_path: Path) -> None:
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "root/bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "root/bin/busybox").chmod(0o755)
    config = {"Cmd": ["/bin/busybox", "echo", "packed"]}
    image = await client.images.pack(tmp_path / "root", "mine", config=config)
    assert image.name == "docker.io/library/mine:latest"
    assert (await client.run(image)).output == "packed\n"
    with pytest.raises(InvalidArgument, match="no directory"):
        await client.images.pack(tmp_path / "missing", "mine")


async def test_an_archive_that_is_none(client: Client) -> None:
    with pytest.raises(InvalidArgument):
        await client.images.import_([b"no archive" * 1000])

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 600
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        await client.images.import_(broken())


async def test_namespaces(client: Client) -> None:
    other = client.within("other")
    assert await other.containers.list() == []
    assert await other.images.list() == []
    mine = client.session.scope.namespace
    assert mine in [name for name, _ in await client.namespaces.list()]
    assert "+cradled." in (await client.version()).version


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        async with cradled.connect(str(tmp_path / "nothing")):
            pass


async def test_a_caller_of_exec_that_leaves_when_it_has_started(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Process] = []

    async def start(process: Process) -> None:
        await real(process)
        started.append(process)
        raise asyncio.CancelledError

    container = await client.containers.create(IMAGE, ["sleep", "1000"])
    task = await container.start(output="null")
    real = Process.start
    monkeypatch.setattr(Process, "start", start)
    with pytest.raises(asyncio.CancelledError):
        await task.exec(["sleep", "1000"], output=False)
    (process,) = started
    with contextlib.suppress(NotFound):
        assert (await process.wait()).status == 137
    await container.remove(force=True)
