"""``cradle run -it`` and ``exec -it`` behind a real pseudo-terminal."""

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from harness.cradle import Cradle, running_cradle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"
PATIENCE = 30.0


@pytest.fixture(scope="module")
def cradle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cradle]:
    with running_cradle(tmp_path_factory.mktemp("c")) as cradle:
        yield cradle


class Terminal:
    """The controlling side of a terminal that a ``cradle`` command has as its own."""

    def __init__(self, cradle: Cradle, *args: str) -> None:
        self.controller, terminal = os.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(terminal)
        self.shown = b""
        self.process: subprocess.Popen[bytes] = cradle.popen(
            *args, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
        )
        self.terminal = terminal

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.controller, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())

    def expect(self, pattern: str) -> str:
        """Read until a pattern was shown; what came before is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern.encode(), self.shown)):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.controller], [], [], max(left, 0))
            assert ready, f"never shown: {pattern!r}, but {self.shown!r}"
            self.shown += self._read()
        self.shown = self.shown[found.end() :]
        return found[0].decode()

    def _read(self) -> bytes:
        try:
            return os.read(self.controller, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise

    def end(self) -> int:
        """Wait for the command; the terminal must be as it was."""
        try:
            status = self.process.wait(PATIENCE)
            assert termios.tcgetattr(self.terminal) == self.before
            return status
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.terminal)
            os.close(self.controller)


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
