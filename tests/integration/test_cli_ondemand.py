"""The daemon that comes when it is wanted: once, whatever is lying around."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import leaks
from harness.cradle import CRADLE
from harness.daemon import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="starts daemons: needs root")


class Home:
    """A ``$CRADLE_HOME`` and the daemons that commands start in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = f"od{os.urandom(5).hex()}"
        self.env = {**os.environ, "CRADLE_HOME": str(path), leaks.MARK: self.mark}
        self.env.pop("CRADLE_ADDRESS", None)

    def popen(self, *args: str) -> subprocess.Popen[str]:
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(
            [CRADLE, *args], stdin=null, stdout=pipe, stderr=pipe, text=True, env=self.env
        )

    def run(self, *args: str) -> tuple[int, str, str]:
        process = self.popen(*args)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def daemons(self) -> list[int]:
        found = leaks.marked_processes(self.mark)
        return [pid for pid, command in found.items() if "cradled.daemon" in command]

    def pid(self) -> int:
        return int((self.path / "root/lock").read_text())

    def stop(self) -> None:
        for pid in self.daemons():
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not leaks.marked_processes(self.mark), "the daemon stops")
        shutil.rmtree(self.path, ignore_errors=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    if os.path.exists("/run/cradled/cradled.sock"):
        pytest.skip("a system daemon is running: none is started")
    home = Home(tmp_path / "home")
    yield home
    home.stop()


def test_starts_one_and_says_so_once(home: Home) -> None:
    assert home.run("version") == (0, "client\t0.1.0\nserver\t(no daemon is running)\n", "")
    assert home.daemons() == []
    status, out, err = home.run("ps")
    assert (status, out) == (0, "")
    assert err == f"cradle: started a daemon in {home.path}; it stops after 10 idle minutes\n"
    assert home.run("ps") == (0, "", "")
    assert home.daemons() == [home.pid()]
    assert "+cradled." in home.run("version")[1]
    assert (home.path.stat().st_mode & 0o777) == 0o700
    command = Path(f"/proc/{home.pid()}/cmdline").read_bytes().split(b"\0")
    assert command[command.index(b"--exit-idle") + 1] == b"600"
    assert os.readlink(f"/proc/{home.pid()}/cwd") == "/"


def test_many_at_once_start_one(home: Home) -> None:
    processes = [home.popen("images") for _ in range(4)]
    results = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [status for _, _, status in results] == [0] * 4
    assert sum("started a daemon" in err for _, err, _ in results) == 1
    assert len(home.daemons()) == 1


def test_after_kill_9_the_next_one_takes_over(home: Home) -> None:
    home.run("ps")
    first = home.pid()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in home.daemons(), "it is dead")
    assert (home.path / "cradle.sock").exists()  # stale
    status, _, err = home.run("ps")
    assert status == 0, err
    assert "started a daemon" in err
    assert home.pid() != first


def test_a_socket_nobody_listens_on(home: Home) -> None:
    home.path.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(home.path / "cradle.sock"))
    status, _, err = home.run("ps")
    assert status == 0, err


def test_a_daemon_that_cannot_start_tells_why(home: Home) -> None:
    home.path.mkdir()
    (home.path / "root").write_text("in the way")
    status, _, err = home.run("ps")
    assert status == 1
    assert err.startswith("cradle: the daemon did not start: ")
    assert "root" in err
    assert err.count("\n") == 1


def test_a_home_too_long_for_a_socket(home: Home) -> None:
    home.env["CRADLE_HOME"] = "/tmp/" + "x" * 100
    status, _, err = home.run("ps")
    assert status == 1
    assert "too long for a socket; set CRADLE_HOME to a shorter directory" in err


def test_an_address_that_was_given_starts_nothing(home: Home) -> None:
    status, _, err = home.run("--address", str(home.path / "nothing.sock"), "ps")
    assert status == 1
    assert "start a daemon with `cradle daemon`" in err
    assert home.daemons() == []


def test_users_without_rights_are_told(home: Home) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", CRADLE, "ps"]
    home.env["CRADLE_HOME"] = "/tmp/nobody-cradle"
    done = subprocess.run(command, capture_output=True, text=True, env=home.env, check=False)
    if "Permission denied" in done.stderr and "setpriv" in done.stderr:
        pytest.skip("the tree cannot be read by others")
    assert done.returncode == 1
    assert done.stderr == (
        "cradle: no daemon is running, and starting one needs root; run as root\n"
    )


def test_a_daemon_in_the_foreground(home: Home) -> None:
    process = home.popen("daemon")
    wait_until(lambda: home.run("version")[1].endswith("+cradled.0.1.0\n"), "it answers")
    assert home.daemons() == [process.pid]
    process.terminate()
    assert process.wait(30) == 0
    process.communicate()


def test_an_upgrade_of_a_daemon_that_was_started_on_demand(home: Home) -> None:
    status, out, err = home.run("daemon", "upgrade")
    assert (status, out) == (1, "")
    text = "cradle: no daemon is running; the new version will be, when it is started\n"
    assert err == text
    assert home.daemons() == []
    assert home.run("ps")[0] == 0
    before = home.pid()
    status, out, err = home.run("daemon", "upgrade")
    assert (status, err) == (0, "")
    wait_until(lambda: home.daemons() == [home.pid()], "the old one is gone")
    assert out.splitlines()[1] == f"process\t{home.pid()}"
    assert home.pid() != before
    arguments = Path(f"/proc/{home.pid()}/cmdline").read_bytes().split(b"\0")
    assert arguments[arguments.index(b"--exit-idle") + 1] == b"600"
    assert home.run("ps") == (0, "", "")
