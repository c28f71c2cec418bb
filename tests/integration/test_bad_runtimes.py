"""Runtimes that are missing, hang, lie or die, at each command: an error that says so, in time, and
nothing left of what they began. Behind each bad runtime is the real one, until it is told a fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import leaks
from harness.bad_runtimes import (
    FAULTS,
    FIELDS,
    METHODS,
    RUNNING,
    STATUSES,
    STOPPED,
    Fault,
    Runtime,
    arrange,
    dies,
    dies_late,
    end,
    garbage,
    missing,
    not_executable,
    of_another_format,
    silent,
    talks,
)
from harness.shims import Fifos, Shim, Status, eventually, has_ended, request, running
from harness.tasks import OWN, Node
from harness.tasks import running as node

from cradled.api import runc_options_pb2, task_v3_pb2, types_pb2, wellknown_pb2
from cradled.core.values import AnyValue
from cradled.errors import Error
from cradled.runtime.launcher import RUNC_OPTIONS
from cradled.runtime.timeouts import Timeouts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNKNOWN = 2
LIMIT = 4.0


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    directory = tmp_path_factory.mktemp("bad")
    (directory / "runtimes").mkdir()
    with running(directory, prelude=f'params["runtime_limit"] = {LIMIT}') as shim:
        shim.run("first")  # from here on all is open that stays open
        eventually(lambda: "delete" in shim.ear.topics())
        yield shim


@pytest.fixture(params=["odd", "runc"])
def runtime(shim: Shim, request: pytest.FixtureRequest) -> Runtime:
    """One that is asked for everything, and one whose containers are known to be plain."""
    return Runtime(shim.directory / "runtimes", request.param)


@pytest.fixture
def odd(shim: Shim) -> Runtime:
    return Runtime(shim.directory / "runtimes", "odd")


def refusal(shim: Shim, method: str, **fields: object) -> str:
    """The text of a call's failure, which has no class of its own."""
    with pytest.raises(Status) as caught:
        shim.call(method, **fields)
    assert caught.value.code == UNKNOWN
    return caught.value.message


def descriptors(shim: Shim) -> int:
    return len(os.listdir(f"/proc/{shim.pid}/fd"))


def strays(shim: Shim) -> set[int]:
    """Children of a shim that are no container's first process."""
    children = Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()
    return set(map(int, children)) - {shim.connect(x.name).task_pid for x in shim.bundles.iterdir()}


def traces(shim: Shim, id: str) -> list[str]:
    """What there is of a container beside its bundle."""
    found = [path for path in leaks.cgroups_named(id) if f"/{shim.mark}/" in path]
    found += leaks.mounts_below(str(shim.bundles / id))
    notes = Path(shim.runc_root) / shim.mark / id
    return found + ([str(notes)] if notes.exists() else [])


def assert_gone(shim: Shim, id: str, before: int) -> None:
    eventually(lambda: not traces(shim, id))
    eventually(lambda: not strays(shim))
    assert descriptors(shim) == before
    with pytest.raises(Status, match="container not created"):
        shim.state(id)


class Attempt:
    """A creation on a mounted root file system and FIFOs, that must fail and leave nothing."""

    def __init__(self, shim: Shim, runtime: Runtime, id: str) -> None:
        self.shim, self.runtime, self.id = shim, runtime, id
        self.before = descriptors(shim)
        if not (shim.bundles / id).exists():
            shim.bundle(id, "/bin/sh", "-c", "exit 5")
            lower = shim.directory / f"{id}-rootfs"
            os.rename(shim.bundles / id / "rootfs", lower)
            (shim.bundles / id / "rootfs").mkdir()
        lower = shim.directory / f"{id}-rootfs"
        self.rootfs = [{"type": "bind", "source": str(lower), "options": ["rbind", "rw"]}]
        self.fifos = Fifos(shim.directory / f"{id}-fifo", "stdout", "stderr")

    def run(self) -> str:
        """The error's text."""
        try:
            text = refusal(self.shim, "Create", **self.request())
            self.fifos.read("stdout")  # to the end: nobody holds the other
            self.fifos.read("stderr")
            assert_gone(self.shim, self.id, self.before)
        finally:
            self.close()
        return text

    def request(self) -> dict[str, object]:
        return {
            "id": self.id, "bundle": str(self.shim.bundles / self.id), "rootfs": self.rootfs,
            "options": self.runtime.options, "stdout": self.fifos.paths["stdout"],
            "stderr": self.fifos.paths["stderr"],
        }  # fmt: skip

    def close(self) -> None:
        self.fifos.close()
        shutil.rmtree(self.fifos.directory)
        (self.shim.bundles / self.id / "log.json").unlink(missing_ok=True)
        (self.shim.bundles / self.id / "init.pid").unlink(missing_ok=True)


def test_create(shim: Shim, runtime: Runtime) -> None:
    id = f"create-{runtime.path.name}"
    for fault in FAULTS:
        reason = fault(runtime, "create")
        if fault not in (garbage, talks, dies_late):
            log = f"open {shim.bundles}/{id}/log.json: no such file or directory"
            reason = f"unable to retrieve OCI runtime error ({log}): {reason}"
        assert Attempt(shim, runtime, id).run() == f"OCI runtime create failed: {reason}"
        runtime.repair()
    rootfs = Attempt(shim, runtime, id).rootfs
    assert shim.run(id, options=runtime.options, rootfs=rootfs) == 5


PIDS = {
    "none": ("rm $pid_file", "open {}: no such file or directory"),
    "nonsense": ("echo nonsense > $pid_file", "'nonsense' is no pid"),
    "empty": (": > $pid_file", "'' is no pid"),
    "negative": ("echo -1 > $pid_file", "'-1' is no pid"),
    "zero": ("echo 0 > $pid_file", "'0' is no pid"),
    "huge": ("echo 99999999999999999999 > $pid_file", "'99999999999999999999' is no pid"),
    "stranger": ("echo {stranger} > $pid_file", "process {stranger} is none of its own"),
    "unborn": ("echo 4194303 > $pid_file", "process 4194303 is none of its own"),
    "neighbour": ("echo {neighbour} > $pid_file", "process {neighbour} is another's"),
}


def known(text: str, stranger: int, neighbour: int) -> str:
    return text.replace("{stranger}", str(stranger)).replace("{neighbour}", str(neighbour))


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is not the shim's."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        assert process.poll() is None
        process.kill()


@pytest.fixture(scope="module")
def neighbour(shim: Shim) -> Iterator[int]:
    """The init of a container that has nothing to do with all this."""
    shim.create("neighbour", "/bin/sleep", "1000")
    yield shim.call("Start", id="neighbour").pid
    assert shim.state("neighbour").status == RUNNING


def test_create_with_the_wrong_pid(shim: Shim, odd: Runtime, stranger: int, neighbour: int) -> None:
    """The container was made, but of what is not known: it is removed, and nobody else is hurt."""
    for script, reason in PIDS.values():
        odd.fail("create", f'real "$@" || exit; {known(script, stranger, neighbour)}; exit 0')
        text = Attempt(shim, odd, "pid").run()
        reason = known(reason, stranger, neighbour).format(f"{shim.bundles}/pid/init.pid")
        assert text == f"failed to retrieve OCI runtime container pid: {reason}"
    assert not has_ended(neighbour)


@pytest.mark.parametrize("fault", ["kill -9 $$", "exit 3", "rm $pid_file; exit 0"])
@pytest.mark.parametrize("cleaner", ["exit 4", "kill -9 $$", "exit 0"])
def test_create_that_nobody_takes_back(shim: Shim, odd: Runtime, fault: str, cleaner: str) -> None:
    """The runtime has made the container, and cannot even remove it."""
    odd.fail("create", f'real "$@"; {fault}')
    odd.fail("delete", cleaner)
    Attempt(shim, odd, "orphan").run()


def test_a_container_that_was_there_is_not_taken_for_a_failed_one(shim: Shim, odd: Runtime) -> None:
    """Another daemon may share the runtime's root."""
    notes = Path(shim.runc_root) / shim.mark / "others"
    argv = ["runc", "--root", str(notes.parent), "create", "--bundle", "."]
    bundle = shim.bundle("others", "/bin/sleep", "1000")
    pid_file = shim.directory / "others.pid"
    subprocess.run([*argv, "--pid-file", pid_file, "others"], cwd=bundle, check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=shim.env)  # fmt: skip
    try:
        text = refusal(shim, "Create", id="others", bundle=str(bundle), options=odd.options)
        assert text.startswith("OCI runtime create failed: ")
        odd.fail("create", "kill -9 $$")
        refusal(shim, "Create", id="others", bundle=str(bundle), options=odd.options)
        assert notes.exists()
        assert not has_ended(int(pid_file.read_text()))
    finally:
        subprocess.run([*argv[:3], "delete", "--force", "others"], check=True)


def test_another_daemon_s_container_of_the_same_cgroup_lives_on(shim: Shim, odd: Runtime) -> None:
    """Namespaces and ids name cgroups, and are not unique among the daemons of a host."""
    bundle = shim.bundle("namesake", "/bin/sleep", "1000")
    with running_alone(shim, bundle, odd, root="runc-of-another") as pid:
        for script in ("exit 3", 'real "$@"; kill -9 $$'):
            odd.fail("create", script)
            refusal(shim, "Create", id="namesake", bundle=str(bundle), options=odd.options)
            assert not (Path(shim.runc_root) / shim.mark / "namesake").exists()
            eventually(lambda: not strays(shim))
            assert not has_ended(pid)
        other = f"{shim.directory}/runc-of-another/{shim.mark}"
        subprocess.run(["runc", "--root", other, "delete", "--force", "namesake"], check=True)


@pytest.mark.parametrize("command", METHODS)
def test_commands(shim: Shim, odd: Runtime, command: str) -> None:
    """Each fails, and the container is what it was before."""
    method, failure = METHODS[command]
    fields = FIELDS.get(command, {})
    before = descriptors(shim)
    pid = arrange(shim, odd, command, command)
    for fault in FAULTS[:-1]:
        reason = fault(odd, command)
        text = refusal(shim, method, id=command, **fields)
        assert text.startswith(f"{failure}: {reason}")
        assert text.isprintable()
        odd.repair()
        assert shim.state(command).status == STATUSES.get(command, RUNNING)
    shim.call(method, id=command, **fields)
    if command != "delete":
        end(shim, command, pid)
    assert_gone(shim, command, before)


@pytest.mark.parametrize("command", ["start", "kill", "update", "delete", "ps"])
def test_a_runtime_that_dies_when_the_work_is_done(shim: Shim, odd: Runtime, command: str) -> None:
    before = descriptors(shim)
    pid = arrange(shim, odd, command, command)
    method, failure = METHODS[command]
    reason = dies_late(odd, command)
    text = refusal(shim, method, id=command, **FIELDS.get(command, {}))
    assert text.startswith(f"{failure}: {reason}")
    assert shim.state(command).status == (STOPPED if command == "delete" else RUNNING)
    odd.repair()
    end(shim, command, pid)
    assert_gone(shim, command, before)


@pytest.mark.parametrize("name", ["odd", "crun"])
def test_half_a_pause_is_taken_back(shim: Shim, name: str) -> None:
    runtime = Runtime(shim.directory / "runtimes", name)
    pid = arrange(shim, runtime, f"half-{name}", "kill")
    dies_late(runtime, "pause")
    refusal(shim, "Pause", id=f"half-{name}")
    assert shim.state(f"half-{name}").status == RUNNING
    (freezer,) = [path for path in leaks.cgroups_named(f"half-{name}") if "/freezer/" in path]
    assert Path(freezer, "freezer.state").read_text() == "THAWED\n"
    end(shim, f"half-{name}", pid)


def test_a_resume_that_came_off_though_it_failed(shim: Shim) -> None:
    crun = Runtime(shim.directory / "runtimes", "crun")
    pid = arrange(shim, crun, "woken", "resume")
    dies_late(crun, "resume")
    text = refusal(shim, "Resume", id="woken")
    assert text.startswith("OCI runtime resume failed: ")
    assert shim.state("woken").status == RUNNING
    end(shim, "woken", pid)


def test_exec(shim: Shim, runtime: Runtime) -> None:
    id = f"exec-{runtime.path.name}"
    pid = arrange(shim, runtime, id, "exec")
    before = descriptors(shim)
    for fault in FAULTS:
        reason = fault(runtime, "exec")
        text = failed_exec(shim, id, fault.__name__)
        assert text == f"OCI runtime exec failed: {reason}"
        runtime.repair()
        eventually(lambda: not strays(shim))
        assert descriptors(shim) == before
    assert {x.pid for x in shim.call("Pids", id=id).processes} == {pid}
    assert shim.exec(id, "good", "/bin/sh", "-c", "exit 3")
    assert shim.wait(id, "good") == 3
    end(shim, id, pid)


def failed_exec(shim: Shim, id: str, exec_id: str) -> str:
    """The text of an exec's failure, of which nothing stays, nor is anybody left waiting."""
    fifos = Fifos(shim.directory / exec_id, "stdout", "stderr")
    streams = {name: fifos.paths[name] for name in fifos.names}
    shim.add_exec(id, exec_id, "/bin/sleep", "1000", **streams)
    text = refusal(shim, "Start", id=id, exec_id=exec_id)
    fifos.read("stdout")
    fifos.read("stderr")
    fifos.close()
    shutil.rmtree(fifos.directory)
    assert shim.wait(id, exec_id) == 0
    assert shim.call("Delete", id=id, exec_id=exec_id).pid == 0
    assert not list((shim.bundles / id).glob(f"{exec_id}*"))
    return text


def test_exec_with_the_wrong_pid(
    shim: Shim, runtime: Runtime, stranger: int, neighbour: int
) -> None:
    id = f"xpid-{runtime.path.name}"
    pid = arrange(shim, runtime, id, "exec")
    for name, (script, reason) in PIDS.items():
        runtime.fail("exec", f'real "$@" || exit; {known(script, stranger, neighbour)}; exit 0')
        reason = known(reason, stranger, neighbour).format(f"{shim.bundles}/{id}/{name}.pid")
        text = failed_exec(shim, id, name)
        assert text == f"failed to retrieve OCI runtime container pid: {reason}"
    assert not has_ended(neighbour)
    end(shim, id, pid)


CONSOLES = {
    "silence": ("", "[Errno 11] Resource temporarily unavailable"),
    "a word": ("s.connect(sys.argv[1]); s.send(b'terminal')", "no descriptor was sent"),
    "nothing": ("s.connect(sys.argv[1])", "no descriptor was sent"),
    "a file": (
        "s.connect(sys.argv[1]); socket.send_fds(s, [b'/dev/null'], [0])",
        "it is no terminal",
    ),
    "a promise": (
        "s.connect(sys.argv[1]); os.fork() or time.sleep(1000)",
        "[Errno 11] Resource temporarily unavailable",
    ),
}


@pytest.mark.parametrize("sent", CONSOLES)
def test_no_terminal(shim: Shim, odd: Runtime, sent: str) -> None:
    """The runtime says that it is done, but hands over no terminal."""
    id = sent.replace(" ", "-")
    code, reason = CONSOLES[sent]
    code = f"import os, socket, sys, time; s = socket.socket(socket.AF_UNIX); {code}"
    odd.fail("create", f'{sys.executable} -c "{code}" $socket < /dev/null; exit 0')
    before = descriptors(shim)
    text = refusal(shim, "Create", id=id, bundle=str(shim.bundle(id)), options=odd.options,
                   terminal=True)  # fmt: skip
    assert text == f"failed to retrieve console master: {reason}"
    for pid in leaks.processes_with(code):  # nobody can know of it
        os.kill(pid, 9)
    assert_gone(shim, id, before)


@pytest.mark.parametrize("command", ["start", "delete"])
def test_a_runtime_that_only_says_it_did(shim: Shim, odd: Runtime, command: str) -> None:
    before = descriptors(shim)
    arrange(shim, odd, "idle", command)
    odd.fail(command, "exit 0")
    shim.call(METHODS[command][0], id="idle")
    if command == "start":
        shim.call("Kill", id="idle", signal=9)
        assert shim.wait("idle") == 137
        shim.call("Delete", id="idle")
    assert_gone(shim, "idle", before)


def test_a_delete_of_what_was_never_started_that_does_nothing(shim: Shim, odd: Runtime) -> None:
    before = descriptors(shim)
    pid = shim.create("still", "/bin/sleep", "1000", options=odd.options)
    odd.fail("delete", "exit 0")
    deleted = shim.call("Delete", id="still")
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert_gone(shim, "still", before)


def test_no_processes_but_words(shim: Shim, odd: Runtime) -> None:
    pid = arrange(shim, odd, "words", "ps")
    before = descriptors(shim)
    for script, told in (
        ("printf '\\377no\\033 JSON'", "\ufffdno\ufffd JSON"),
        (":", "nothing"),
        ("printf '[1,-2]'", "[1,-2]"),
        ("printf '[true]'", "[true]"),
        ("printf '[99999999999]'", "[99999999999]"),
        ("printf '{\"1\":2}'", '{"1":2}'),
        ("printf '[[1]]'", "[[1]]"),
        ("printf '%5000s' | tr ' ' '['", "[" * 4096),
    ):
        odd.fail("ps", f"{script}; exit 0")
        text = refusal(shim, "Pids", id="words")
        assert text == f"OCI runtime ps failed: {told} is no list of processes"
    odd.fail("ps", "yes; exit 0")
    assert refusal(shim, "Pids", id="words").endswith("y y is no list of processes")
    odd.fail("ps", "echo null; exit 0")
    assert not shim.call("Pids", id="words").processes
    assert descriptors(shim) == before
    end(shim, "words", pid)


HUNG = "trap '' TERM INT HUP; sleep 1000 & wait"
LATE = f'real "$@"; {HUNG}'


class Hung:
    """One call of each kind, to containers of one shim, whose runtimes do not come to an end."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.pids: dict[str, int] = {}
        self.streams: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.runtimes: list[Runtime] = []
        for command, (method, failure) in METHODS.items():
            self._arrange(command, failure)
            self.send(command, method, **FIELDS.get(command, {}))
        self._arrange("exec", "OCI runtime exec failed", late=True)
        shim.add_exec("hung-exec", "x", "/bin/sleep", "1000")
        self.send("exec", "Start", exec_id="x")
        for command, script in (("create", HUNG), ("create-late", LATE)):
            runtime = self._runtime(command, "OCI runtime create failed")
            runtime.fail("create", script)
            bundle = shim.bundle(f"hung-{command}")
            self.send(command, "Create", bundle=str(bundle), options=runtime.options)

    def _arrange(self, command: str, failure: str, *, late: bool = False) -> None:
        runtime = self._runtime(command, failure)
        self.pids[command] = arrange(self.shim, runtime, f"hung-{command}", command)
        runtime.fail(command, LATE if late else HUNG)

    def _runtime(self, command: str, failure: str) -> Runtime:
        runtime = Runtime(self.shim.directory / "runtimes", "odd")
        self.runtimes.append(runtime)
        self.failures[command] = f"{failure}: {runtime.path}"
        return runtime

    def send(self, command: str, method: str, **fields: object) -> None:
        message = request(method, id=f"hung-{command}", **fields)
        self.streams[command] = self.shim.channel.send(method, message)

    def receive(self, command: str) -> str:
        with pytest.raises(Status) as caught:
            self.shim.channel.receive(self.streams.pop(command), wellknown_pb2.Empty)
        return caught.value.message


def test_runtimes_that_hang(shim: Shim) -> None:
    """Each is ended after its time; until then nobody else waits, nor whoever kills or deletes."""
    before = descriptors(shim)
    hung = Hung(shim)
    assert shim.run("lively", "/bin/sh", "-c", "exit 4") == 4
    shim.call("Kill", id="hung-start", signal=9)
    deletion = shim.channel.send("Delete", request("Delete", id="hung-start"))
    shim.call("Kill", id="hung-pause", signal=9)
    assert shim.wait("hung-pause") == 137
    assert not set(hung.streams.values()) & shim.channel.replies.keys(), "somebody has waited"
    for command, failure in hung.failures.items():
        assert hung.receive(command) == f"{failure} did not terminate within {LIMIT:g} s"
    shim.channel.receive(deletion, task_v3_pb2.DeleteResponse)
    del hung.pids["start"]
    for runtime in hung.runtimes:
        runtime.repair()
    for command, pid in hung.pids.items():
        end(shim, f"hung-{command}", pid)
    eventually(lambda: not leaks.processes_with(str(shim.directory / "runtimes")))
    for command in hung.failures:
        assert_gone(shim, f"hung-{command}", before)


@pytest.mark.parametrize("fault", ["missing", "fails", "dies", "hangs", "does nothing"])
def test_the_delete_program(shim: Shim, odd: Runtime, fault: str) -> None:
    """What cleans up after a dead shim does so without the runtime, if need be."""
    id = fault.replace(" ", "-")
    bundle = shim.bundle(id, "/bin/sleep", "1000")
    with running_alone(shim, bundle, odd) as pid:
        if fault == "missing":
            odd.path.unlink()
        else:
            odd.fail("delete", {"fails": "exit 3", "dies": "kill -9 $$", "hangs": HUNG,
                                "does nothing": "exit 0"}[fault])  # fmt: skip
        done = shim.program("-bundle", str(bundle), "delete", bundle=bundle)
    response = task_v3_pb2.DeleteResponse.FromString(done.stdout)
    assert (response.pid, response.exit_status) == (pid, 137)
    assert bool(done.stderr) == (fault != "does nothing")
    assert not traces(shim, id)
    eventually(lambda: has_ended(pid))
    assert not leaks.processes_with(str(odd.path))


@contextmanager
def running_alone(shim: Shim, bundle: Path, runtime: Runtime, root: str = "runc") -> Iterator[int]:
    """A container of a shim that has died, with what it has written down; its pid."""
    root = f"{shim.directory}/{root}/{shim.mark}"
    argv = [str(runtime.path), "--root", root, "--log", "log.json", "--log-format", "json"]
    words = ["run", "--detach", "--bundle", ".", "--pid-file", "init.pid", bundle.name]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run([*argv, *words], cwd=bundle, check=True, env=shim.env, **streams)
    kept = {"binary_name": str(runtime.path), "root": shim.runc_root}
    (bundle / "options.json").write_text(json.dumps(kept))
    (bundle / "runtime").write_text(str(runtime.path))
    yield int((bundle / "init.pid").read_text())


async def test_the_limit_is_the_daemon_s(tmp_path: Path) -> None:
    """Through the whole of it: a hung runtime, an error to the client, and nothing left."""
    runtime = Runtime(tmp_path, "odd")
    runtime.fail("create", LATE)
    message = runc_options_pb2.Options(binary_name=str(runtime.path))
    async with node(OWN, Timeouts(runtime=1.0)) as own:
        chosen = AnyValue(RUNC_OPTIONS, message.SerializeToString())
        own.add("hung", "/bin/sleep", "1000", options=chosen)
        with pytest.raises(Error, match=r"did not terminate within 1 s$") as caught:
            await own.create("hung")
        assert str(caught.value).startswith("failed to create shim task: OCI runtime create")
        assert not own.bundle("hung").exists()
        await own.settled()
        assert not leaks.processes_with(str(runtime.path))
        runtime.repair()
        await own.create("hung")
        runtime.fail("start", HUNG)
        with pytest.raises(Error, match=r"^OCI runtime start failed: .* did not terminate within"):
            await own.tasks.start(own.scope, "hung")
        runtime.repair()


async def test_what_docker_looks_for(tmp_path: Path) -> None:
    """Its exit codes 126 and 127 are made of these words."""
    async with node(OWN) as own:
        for args, words in (
            (("nothing",), "executable file not found"),
            (("/bin/nothing",), "no such file or directory"),
            (("/tmp",), "permission denied"),
            (("/bin/busybox/x",), "not a directory"),
        ):
            own.add("words", *args)
            with pytest.raises(Error) as caught:
                await own.create("words")
            assert words in str(caught.value)
        await own.run("words-exec", "/bin/sleep", "1000")
        with pytest.raises(Error, match=r"^OCI runtime exec failed: .*executable file not found"):
            await own.exec("words-exec", "x", "nothing")
        absent = runc_options_pb2.Options(binary_name="no-runc").SerializeToString()
        own.add("absent", "/bin/true", options=AnyValue(RUNC_OPTIONS, absent))
        with pytest.raises(Error, match=r'"no-runc": executable file not found in \$PATH$'):
            await own.create("absent")


async def test_a_client_that_does_not_wait_for_a_hung_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody waits for is given up before its time, with the shim that hangs on it."""
    monkeypatch.setattr("cradled.runtime.manager.TAKE_BACK_SECONDS", 0.1)
    runtime = Runtime(tmp_path, "odd")
    runtime.fail("create", LATE)
    async with node(OWN, Timeouts(shutdown=0.3)) as own:
        await give_up(own, runtime, "alone")
        await own.settled()
        assert not leaks.processes_with(str(runtime.path))
        runtime.repair()
        assert await own.run("alone")


@pytest.mark.parametrize(
    "fault", [LATE, f'sleep 1; {shutil.which("runc")} "$@"; exit'], ids=["hangs", "is slow"]
)
async def test_a_client_that_does_not_wait_for_a_runtime_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The shim serves others: it stays, and deletes what it could not make once it knows."""
    monkeypatch.setattr("cradled.runtime.manager.TAKE_BACK_SECONDS", 0.1)
    runtime = Runtime(tmp_path, "odd")
    group = {"io.containerd.runc.v2.group": "pod"}
    async with node(OWN, Timeouts(shutdown=0.3, runtime=2.0)) as own:
        own.add("first", "/bin/sleep", "1000", annotations=group)
        pid = await own.run("first")
        runtime.fail("create", fault)
        await give_up(own, runtime, "second", annotations=group)
        async with asyncio.timeout(20):
            path = str(runtime.path)
            while leaks.processes_with(path) or leaks.cgroups_named("second"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not own.bundle("second").exists()
        assert not has_ended(pid)
        runtime.repair()
        assert await own.run("second")


async def give_up(own: Node, runtime: Runtime, id: str, **spec: Any) -> None:
    """Create with a runtime that hangs, and go away meanwhile."""
    message = runc_options_pb2.Options(binary_name=str(runtime.path))
    chosen = AnyValue(RUNC_OPTIONS, message.SerializeToString())
    own.add(id, "/bin/sleep", "1000", options=chosen, **spec)
    creation = asyncio.create_task(own.create(id))
    while not leaks.processes_with(str(runtime.path)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation


@pytest.mark.parametrize("fault", [silent, dies, garbage])
def test_info_of_a_runtime_that_tells_no_features(shim: Shim, odd: Runtime, fault: Fault) -> None:
    """As of one that is too old to know the command."""
    fault(odd, "features")
    assert features(shim, odd) is None
    odd.fail("features", "echo '[]'; exit 0")
    assert features(shim, odd) is None
    odd.fail("features", 'echo \'{"ociVersionMin":"1.0.0"}\'; exit 0')
    assert features(shim, odd) == {"ociVersionMin": "1.0.0"}
    odd.repair()
    assert "linux" in (features(shim, odd) or {})


def features(shim: Shim, runtime: Runtime) -> dict[str, Any] | None:
    given = runtime.options.SerializeToString()
    done = shim.program("-info", bundle=shim.bundles / "first", stdin=given)
    info = types_pb2.RuntimeInfo.FromString(done.stdout)
    if not info.HasField("features"):
        return None
    return dict(json.loads(info.features.value))


def test_no_info_of_a_runtime_that_is_not_there(shim: Shim, odd: Runtime) -> None:
    for fault in (missing, not_executable, of_another_format):
        fault(odd, "features")
        given = odd.options.SerializeToString()
        done = shim.program("-info", bundle=shim.bundles / "first", stdin=given, check=False)
        assert (done.returncode, done.stdout) == (1, b"")
        assert str(odd.path).encode() in done.stderr
        odd.repair()
