"""Events on their way to a daemon that refuses them, dies, and comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from harness.shims import PATIENCE, Channel, Shim, eventually, has_ended, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


def test_refused_events_are_sent_again_in_order(shim: Shim) -> None:
    shim.ear.refuse = 1
    shim.run("again", "/bin/true")
    shim.ear.wait("delete")
    assert shim.ear.topics() == ["create", "start", "exit", "delete"]


def test_events_wait_for_a_daemon_that_is_away(shim: Shim) -> None:
    shim.create("away", "/bin/sleep", "1000")
    shim.ear.wait("create")
    shim.ear.close()
    shim.channel.close()
    shim.channel = Channel(shim.path)
    shim.call("Start", id="away")
    shim.call("Kill", id="away", signal=9)
    assert shim.wait("away") == 137
    shim.ear.open()
    assert shim.ear.wait("exit").exit_status == 137
    assert shim.ear.topics() == ["create", "start", "exit"]


def test_a_daemon_that_is_back_is_told_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its first connection to the shim is the sign, not the next attempt in 600 s."""
    prelude = "import cradled.shim.publisher as p; p.FIRST_TRY = p.LAST_TRY = 600.0"
    with running(tmp_path_factory.mktemp("shim"), prelude=prelude) as shim:
        shim.create("back", "/bin/sleep", "1000")
        shim.ear.wait("create")
        shim.ear.close()
        shim.call("Start", id="back")
        shim.call("Kill", id="back", signal=9)
        assert shim.wait("back") == 137
        shim.ear.open()
        Channel(shim.path).close()
        assert shim.ear.wait("exit").exit_status == 137
        assert shim.ear.topics() == ["create", "start", "exit"]


def test_an_exit_is_told_however_often_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    prelude = "import cradled.shim.publisher as p; p.TRIES = 0"
    with running(tmp_path_factory.mktemp("shim"), prelude=prelude) as shim:
        shim.ear.refuse = 3
        shim.run("told", "/bin/true")
        assert b"event /tasks/create refused: not now" in shim.log()
        shim.ear.wait("exit")
        shim.ear.wait("delete")
        assert sorted(shim.ear.topics()) == ["delete", "exit"]


def test_shutdown_waits_for_the_last_events(shim: Shim) -> None:
    shim.run("last", "/bin/true")
    pid = shim.pid
    shim.call("Shutdown", id="")
    eventually(lambda: has_ended(pid))
    assert shim.ear.topics() == ["create", "start", "exit", "delete"]
    assert not os.path.exists(shim.path)
    _again(shim)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_shim_but_not_its_containers(shim: Shim, number: int) -> None:
    """In good order: what has been told to nobody yet is told, the socket is removed."""
    shim.create("orphan", "/bin/sleep", "1000")
    shim.call("Start", id="orphan")
    pid = shim.state("orphan").pid
    shim.exec("orphan", "e", "/bin/sleep", "1000")
    os.kill(shim.pid, signal.SIGPIPE)  # which is nothing to it
    os.kill(shim.pid, number)
    eventually(lambda: not os.path.exists(shim.path))
    eventually(lambda: has_ended(shim.pid))
    assert shim.ear.topics() == ["create", "start", "exec-added", "exec-started"]
    assert os.path.exists(f"/proc/{pid}")
    shim.channel.close()
    done = shim.program("delete", bundle=shim.bundles / "orphan")
    assert done.stdout
    eventually(lambda: has_ended(pid))
    _again(shim)


def _again(shim: Shim) -> None:
    """Start another shim in the place of one that has ended, for the fixture to end."""
    shim.channel.close()
    shim.pid = shim._fork(shim.bundles / "first")
    shim.channel = Channel(shim.path)


def test_only_the_same_user_is_served(shim: Shim) -> None:
    os.chmod(shim.path, 0o666)
    for directory in (shim.directory, *shim.directory.parents):
        if directory.stat().st_mode & 0o001 == 0:
            pytest.skip("another user cannot reach the socket here anyway")
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        channel = Channel(shim.path)
        channel.sock.settimeout(PATIENCE)
        os._exit(0 if channel.sock.recv(1) == b"" else 1)
    assert os.waitpid(pid, 0)[1] == 0
