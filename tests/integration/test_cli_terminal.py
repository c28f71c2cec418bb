"""``cradle run -it`` and ``exec -it`` behind a real pseudo-terminal."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from harness.cradle import Cradle, running_cradle
from harness.terminals import PATIENCE, Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"


@pytest.fixture(scope="module")
def cradle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cradle]:
    with running_cradle(tmp_path_factory.mktemp("c")) as cradle:
        yield cradle


def test_a_shell(cradle: Cradle) -> None:
    terminal = Terminal(cradle, "run", "--rm", "-it", IMAGE, "sh")
    terminal.expect("# ")
    terminal.type("tty; echo $TERM; echo a$((1+1))b\n")
    terminal.expect("/dev/pts/0\r\n")
    terminal.expect("xterm")
    terminal.expect("a2b\r\n")
    terminal.type("exit 7\n")
    assert terminal.end() == 7


def test_window_size_is_told_and_followed(cradle: Cradle) -> None:
    terminal = Terminal(cradle, "run", "--rm", "-it", IMAGE, "sh")
    terminal.expect("# ")
    terminal.type("stty size\n")
    terminal.expect("24 80\r\n")
    terminal.resize(132, 50)
    terminal.process.send_signal(signal.SIGWINCH)
    deadline = time.monotonic() + PATIENCE
    size = ""
    while size != "50 132" and time.monotonic() < deadline:
        terminal.type("stty size\n")
        size = terminal.expect(r"\d+ \d+(?=\r\n)")
    assert size == "50 132"
    terminal.type("exit\n")
    assert terminal.end() == 0


def test_control_keys_reach_the_container(cradle: Cradle) -> None:
    trap = "trap 'echo got it; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(cradle, "run", "--rm", "-it", IMAGE, "sh", "-c", trap)
    terminal.expect("ready\r\n")
    terminal.type("\x03")
    terminal.expect("got it\r\n")
    assert terminal.end() == 5
    terminal = Terminal(cradle, "run", "--rm", "-it", IMAGE, "sh", "-c", "echo ready; cat; exit 4")
    terminal.expect("ready\r\n")
    terminal.type("line\n")
    terminal.expect("line\r\nline\r\n")
    terminal.type("\x04")
    assert terminal.end() == 4


def test_exec_in_a_terminal(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    terminal = Terminal(cradle, "exec", "-it", "box", "sh")
    terminal.expect("# ")
    terminal.type("tty && stty size && exit 3\n")
    terminal.expect("/dev/pts/")
    terminal.expect("24 80")
    assert terminal.end() == 3
    cradle.ok("rm", "-f", "box")


def test_a_terminal_in_the_background(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "-t", "--name", "box", IMAGE, "sh", "-c", "tty; echo err >&2")
    cradle.ok("wait", "box")
    shown = cradle.ok("logs", "-f", "box")
    assert shown == "/dev/pts/0\r\nerr\r\n"
    cradle.ok("rm", "box")


def test_output_only(cradle: Cradle) -> None:
    """With -t alone the process has a terminal, and ours stays as it is."""
    done = cradle.run("run", "--rm", "-t", IMAGE, "sh", "-c", "tty; echo done")
    assert (done.returncode, done.stdout) == (0, "/dev/pts/0\r\ndone\r\n")


def test_errors_leave_the_terminal_alone(cradle: Cradle) -> None:
    terminal = Terminal(cradle, "run", "--rm", "-it", IMAGE, "nosuch")
    terminal.expect("executable file not found")
    assert terminal.end() == 127
