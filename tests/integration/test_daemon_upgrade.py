"""Upgrade in place: who takes over, what goes over, and all that can stop it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import wait_until
from harness.program import Program, started
from harness.upgrades import Stranger, cradle, upgrade

import cradled
from cradled import errors
from cradled.api import events_service_pb2, version_pb2, wellknown_pb2
from cradled.client import connect
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub
from cradled.version import VERSION

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

EMPTY = wellknown_pb2.Empty()
PLAIN = "from cradled.daemon.__main__ import main\nsys.exit(main())\n"


def write_program(path: Path, body: str = "") -> str:
    """The program ``cradled`` as an installation has it; ``body`` runs first."""
    new = path.with_suffix(".new")
    new.write_text(f"#!{sys.executable}\nimport sys\n{body}\n{PLAIN}")
    new.chmod(0o755)
    new.rename(path)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    write_program(path)
    return path


@contextmanager
def daemon(directory: Path, path: Path, *flags: str) -> Iterator[Program]:
    with started(directory, *flags, program=str(path)) as program:
        yield program


def adopt(program: Program, pid: int) -> None:
    """The old daemon has ended well; from now on the program is the new one."""
    assert program.process.wait(20) == 0
    program.process = Stranger(pid)


def told_until(program: Program, word: str) -> list[list[str]]:
    """What the supervisor was told, up to the message with a word."""
    found = [program.told()]
    while word not in found[-1]:
        found.append(program.told())
    return found


def successor_of(program: Program) -> int:
    """The pid of the program that is being started."""
    found: list[int] = []

    def there() -> bool:
        children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
        for pid in map(int, children.read_text().split()):
            with suppress(OSError):
                if b"CRADLED_HANDOVER" in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        return bool(found)

    wait_until(there, "the new program is started")
    return found[0]


async def version_of(program: Program) -> str:
    async with await grpc_client.connect(str(program.socket)) as channel:
        response = await Stub(channel, version_pb2.Version).version(EMPTY, timeout=20)
    return str(response.version)


# It works


async def test_the_new_program_goes_on_with_what_the_old_one_had(
    tmp_path: Path, path: Path
) -> None:
    with daemon(tmp_path, path) as program:
        old = program.process.pid
        inodes = [os.stat(one).st_ino for one in tmp_path.glob("**/*sock*")]
        assert len(inodes) == 3
        write_program(path, 'import cradled.version\ncradled.version.VERSION = "9.9.9"')
        program.process.send_signal(signal.SIGUSR2)
        assert program.told() == ["STATUS=handing over"]
        heir, watchdog, status = program.told()
        pid = int(heir.removeprefix("MAINPID="))
        assert (watchdog, status) == ("WATCHDOG=1", f"STATUS=serving {tmp_path}/root")
        assert program.told()[:2] == ["READY=1", f"MAINPID={pid}"]
        assert pid != old
        adopt(program, pid)
        assert [os.stat(one).st_ino for one in tmp_path.glob("**/*sock*")] == inodes
        for directory in ("root", "state"):
            assert (tmp_path / directory / "lock").read_text() == f"{pid}\n"
        await version_of(program)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(program.socket))
            creds = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert int.from_bytes(creds[:4], sys.byteorder) == pid
        assert program.stop() == 0
        assert not list(tmp_path.glob("**/*sock*"))


def test_the_command_tells_of_it(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        write_program(path, 'import cradled.version\ncradled.version.VERSION = "9.9.9"')
        done = upgrade(program.socket)
        assert (done.old, done.new) == (VERSION, "9.9.9")
        assert done.pause_ms > 0
        adopt(program, done.pid)
        shown = cradle(program.socket, "daemon", "upgrade")
        assert shown.returncode == 0, shown.stderr
        told = re.fullmatch(
            r"upgraded\t9\.9\.9 to 9\.9\.9\nprocess\t(\d+)\npause\t\d+ ms\n", shown.stdout
        )
        assert told is not None
        adopt(program, int(told[1]))


async def test_what_was_under_way_ends_as_with_a_restart(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        async with await grpc_client.connect(str(program.socket)) as channel:
            events = Stub(channel, events_service_pb2.Events)
            stream = events.subscribe(events_service_pb2.SubscribeRequest())
            waiting = asyncio.ensure_future(anext(stream))
            await Stub(channel, version_pb2.Version).version(EMPTY)
            done = await asyncio.to_thread(upgrade, program.socket)
            with pytest.raises(errors.Unavailable):
                await waiting
            adopt(program, done.pid)
            await Stub(channel, version_pb2.Version).version(EMPTY)


def test_nobody_is_refused(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        stop, failures, count = threading.Event(), [], 0

        def knock() -> None:
            nonlocal count
            while not stop.is_set():
                with socket.socket(socket.AF_UNIX) as sock:
                    try:
                        sock.connect(str(program.socket))
                        count += 1
                    except OSError as error:
                        failures.append(error)

        thread = threading.Thread(target=knock)
        thread.start()
        for _ in range(3):
            adopt(program, upgrade(program.socket).pid)
        stop.set()
        thread.join()
        assert failures == []
        assert count > 100


async def test_side_listeners_go_over(tmp_path: Path, path: Path) -> None:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    config = tmp_path / "config.toml"
    text = f"""
        [plugins."io.containerd.server.v1.debug"]
        address = "{tmp_path}/debug.sock"
        [plugins."io.containerd.server.v1.metrics"]
        address = "127.0.0.1:{ports[0]}"
        """
    tcp = f'[plugins."io.containerd.server.v1.grpc-tcp"]\naddress = "127.0.0.1:{ports[1]}"\n'
    config.write_text(f"version = 4\n{text}{tcp}")
    with daemon(tmp_path, path, "-c", str(config)) as program:
        debug = os.stat(tmp_path / "debug.sock").st_ino
        waiting = socket.create_connection(("127.0.0.1", ports[1]))
        config.write_text(f"version = 4\n{text}")  # the last one is not wanted any more
        adopt(program, upgrade(program.socket).pid)
        url = f"http://127.0.0.1:{ports[0]}/v1/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read())
        assert b"cradled_events_total" in page
        assert os.stat(tmp_path / "debug.sock").st_ino == debug
        waiting.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports[1]))
        assert program.stop() == 0
    assert not (tmp_path / "debug.sock").exists()


async def test_events_keep_their_numbers(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        seen = []

        async def namespace(name: str) -> None:
            async with connect(str(program.socket)) as client:
                await client.namespaces.create(name, {})

        await namespace("a")
        async with connect(str(program.socket)) as client:
            events = client.events(since="0")
            seen.append(await anext(events))
            await events.aclose()
        adopt(program, upgrade(program.socket).pid)
        await namespace("b")
        async with connect(str(program.socket)) as client:
            events = client.events(since=seen[0].position)
            seen.append(await anext(events))
            await events.aclose()
    assert [event.fields["name"] for event in seen] == ["a", "b"]
    epochs, numbers = zip(*(event.position.split("-") for event in seen), strict=True)
    assert (len(set(epochs)), numbers) == (1, ("1", "2"))


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
os.execv(sys.argv[2], sys.argv[2:])
"""


async def test_sockets_of_a_service_manager(tmp_path: Path, path: Path) -> None:
    """It keeps them, whatever becomes of the daemon, and of the one after it."""
    with socket.socket(socket.AF_UNIX) as lent:
        lent.bind(str(tmp_path / "d.sock"))
        os.chmod(tmp_path / "d.sock", 0o600)
        lent.listen()
        os.set_inheritable(lent.fileno(), True)
        activating = write_program(
            tmp_path / "activating",
            f"import os\nargs = [sys.executable, '-c', {ACTIVATE!r}, '{lent.fileno()}', '{path}']\n"
            "os.execv(sys.executable, args + sys.argv[1:])",
        )
        inode = os.stat(tmp_path / "d.sock").st_ino
        with started(tmp_path, program=activating, pass_fds=[lent.fileno()]) as program:
            for _ in range(2):
                await version_of(program)
                done = await asyncio.to_thread(upgrade, program.socket)
                adopt(program, done.pid)
            assert program.stop() == 0
            status = os.stat(tmp_path / "d.sock")
            assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o600)
            assert not Path(f"{program.socket}.ttrpc").exists()
            waiting = asyncio.ensure_future(version_of(program))
        with started(tmp_path, program=activating, pass_fds=[lent.fileno()]) as program:
            await waiting  # since before there was anybody
            assert program.stop() == 0


# It does not work


def fails(program: Program) -> str:
    """Why an upgrade fails; the old daemon goes on."""
    pid = program.process.pid
    refused = cradle(program.socket, "daemon", "upgrade")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert program.process.poll() is None
    assert (program.socket.parent / "root/lock").read_text() == f"{pid}\n"
    assert cradle(program.socket, "version").returncode == 0
    wait_until(lambda: children_of(pid) == [], "nothing of the new program is left")
    return refused.stderr


def children_of(pid: int) -> list[int]:
    """Those that could be other daemons: the fork server has another name."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in found}
    return [child for child, command in commands.items() if b"--root=" in command]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("sys.exit(3)", "it ended with status 3, and may have told the log why"),
        ("import os, signal; os.kill(os.getpid(), 9)", "it ended with signal 9"),
        ("import cradled.nothing", "it ended with status 1"),
        ("import os; os.close(3); sys.stdin.read(); sys.exit(5)", "it ended with status 5"),
    ],
)
def test_a_program_that_does_not_start(tmp_path: Path, path: Path, body: str, why: str) -> None:
    with daemon(tmp_path, path) as program:
        write_program(path, body)
        assert f"the new program does not start: {why}" in fails(program)
        write_program(path)
        adopt(program, upgrade(program.socket).pid)


def test_a_program_that_is_gone(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        path.unlink()
        assert "does not start" in fails(program)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("version = 4\nroot = 7\n", "root"),
        ("nonsense", "config.toml"),
    ],
)
def test_a_configuration_that_cannot_be_used(
    tmp_path: Path, path: Path, config: str, why: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("version = 4\n")
    with daemon(tmp_path, path, "-c", str(file)) as program:
        file.write_text(config)
        text = fails(program)
        assert "the new program does not start: " in text
        assert why in text


def test_another_root_is_not_taken_over(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        write_program(path, f"sys.argv.append('--root={tmp_path}/elsewhere')")
        text = f"root was {tmp_path}/root and is {tmp_path}/elsewhere now"
        assert f"{text}: only a restart can change it" in fails(program)


def test_one_that_fails_when_it_has_its_turn_gives_back(tmp_path: Path, path: Path) -> None:
    with socket.socket() as taken, daemon(tmp_path, path) as program:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = tmp_path / "config.toml"
        config.write_text(
            f'version = 4\n[plugins."io.containerd.server.v1.metrics"]\naddress = "{address}"\n'
        )
        write_program(path, f"sys.argv += ['-c', '{config}']")
        for _ in range(2):
            text = fails(program)
            assert "the daemon goes on as it was, the new program does not serve" in text
            assert f"cannot listen at {address}" in text
        write_program(path)
        adopt(program, upgrade(program.socket).pid)


def test_one_that_dies_when_it_has_its_turn(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        write_program(
            path,
            "import os\nfrom cradled.daemon.app import App\n"
            "App._start = lambda self: os.kill(os.getpid(), 9)",
        )
        assert "it ended with signal 9" in fails(program)


def test_stores_that_it_cannot_open(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        write_program(
            path,
            "from cradled.metadata import schema\nschema.VERSION -= 1\n"
            'schema.STATEMENTS += ("CREATE TABLE more (x)",)',
        )
        assert "load required plugin io.containerd.metadata.v1.bolt" in fails(program)


# Signals meanwhile

SLOW = "import time; time.sleep(1000)"
SLOW_TURN = """
import asyncio
from cradled.daemon.app import App
async def wait(self):
    await asyncio.sleep(1000)
App._start = wait
"""


@pytest.mark.parametrize("body", [SLOW, SLOW_TURN], ids=["starting", "its turn"])
def test_a_daemon_that_is_to_end_ends_both(tmp_path: Path, path: Path, body: str) -> None:
    with daemon(tmp_path, path) as program:
        write_program(path, body)
        program.process.send_signal(signal.SIGUSR2)
        pid = successor_of(program)
        if body is SLOW_TURN:
            wait_until(lambda: lock_of(tmp_path) == pid, "it is its turn")
        assert program.stop() == 0
        assert not Path(f"/proc/{pid}").exists()
        assert not list(tmp_path.glob("**/*sock*"))


def lock_of(directory: Path) -> int:
    text = (directory / "root/lock").read_text()
    return int(text) if text else 0


@pytest.mark.parametrize("body", [SLOW, SLOW_TURN], ids=["starting", "its turn"])
def test_a_daemon_that_is_killed_takes_the_new_one_along(
    tmp_path: Path, path: Path, body: str
) -> None:
    """Whoever watches over the old one starts another."""
    with daemon(tmp_path, path) as program:
        write_program(path, body.replace("sleep(1000)", "sleep(1)"))
        program.process.send_signal(signal.SIGUSR2)
        heir = Stranger(successor_of(program))
        if body is SLOW_TURN:
            wait_until(lambda: lock_of(tmp_path) == heir.pid, "it is its turn")
        program.process.kill()
        program.process.wait()
        heir.wait(30)
    write_program(path)
    with daemon(tmp_path, path):
        pass


def test_one_upgrade_at_a_time(tmp_path: Path, path: Path) -> None:
    with daemon(tmp_path, path) as program:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        write_program(path, f"open({str(gate)!r}).close()")
        program.process.send_signal(signal.SIGUSR2)
        pid = successor_of(program)
        for _ in range(3):
            program.process.send_signal(signal.SIGUSR2)
        refused = cradle(program.socket, "daemon", "upgrade")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "an upgrade is under way already" in refused.stderr
        gate.write_text("")
        assert f"MAINPID={pid}" in told_until(program, "WATCHDOG=1")[-1]
        adopt(program, pid)
        write_program(path)
        adopt(program, upgrade(program.socket).pid)


async def test_a_library_is_not_upgraded(tmp_path: Path) -> None:
    async with cradled.Runtime(tmp_path / "root", tmp_path / "state") as client:
        with pytest.raises(errors.Unimplemented):
            await client.upgrade()
    await asyncio.to_thread(
        wait_until, lambda: not leaks.processes_with(str(tmp_path)), "nothing of it is left"
    )
