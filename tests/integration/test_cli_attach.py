"""``cradle attach``: clients that leave, are killed, come back; real containers and terminals."""

import os
import signal
import subprocess

import pytest
from harness.cradle import Cradle
from harness.daemon import wait_until
from harness.terminals import Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"
LEAVE = "\x10\x11"


def test_leave_and_come_back(cradle: Cradle) -> None:
    terminal = Terminal(cradle, "run", "-it", "--name", "box", IMAGE, "sh")
    terminal.expect("# ")
    terminal.type("X=4; Y=2\n")
    terminal.type(LEAVE)
    terminal.expect("left running; `cradle attach box` comes back")
    assert terminal.end() == 0
    assert cradle.ok("ps", "-q") == "box\n"
    for _ in range(2):
        terminal = Terminal(cradle, "attach", "box")
        terminal.expect("# ")
        terminal.type("echo is $X$Y\n")
        terminal.expect("is 42\r\n")
        terminal.type(LEAVE)
        assert terminal.end() == 0
    terminal = Terminal(cradle, "attach", "box")
    terminal.expect("# ")
    terminal.type("exit 7\n")
    assert terminal.end() == 7


def left_exec(cradle: Cradle, *command: str) -> str:
    """Run a further command in ``box``, and leave it once it is ready; its id."""
    terminal = Terminal(cradle, "exec", "-it", "box", *command)
    terminal.expect("ready")
    terminal.type(LEAVE)
    told = terminal.expect("`cradle attach box exec-[0-9a-f]+` comes back")
    assert terminal.end() == 0
    return told.split()[3].rstrip("`")


def test_leave_an_exec_and_come_back(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    exec_id = left_exec(cradle, "sh", "-c", "X=42; echo ready; sh -i; exit 6")
    assert exec_id in cradle.ok("top", "box")
    for last in (False, True):
        terminal = Terminal(cradle, "attach", "box", exec_id)
        terminal.expect("# ")
        terminal.type("echo $((6*7))\n")
        terminal.expect("42\r\n")
        terminal.type("exit\n" if last else LEAVE)
        assert terminal.end() == (6 if last else 0)
    assert "not found" in cradle.fails("attach", "box", exec_id)  # it is told once


def test_an_exec_that_ends_while_nobody_looks(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    script = "echo ready; while [ ! -e /end ]; do sleep 0.05; done; exit 6"
    exec_id = left_exec(cradle, "sh", "-c", script)
    cradle.ok("exec", "box", "touch", "/end")
    wait_until(lambda: exec_id not in cradle.ok("top", "box"), "it has ended")
    assert cradle.run("attach", "box", exec_id).returncode == 6
    assert "not found" in cradle.fails("attach", "box", exec_id)


def test_a_client_that_was_killed(cradle: Cradle) -> None:
    terminal = Terminal(cradle, "run", "-it", "--name", "box", IMAGE, "sh")
    terminal.expect("# ")
    terminal.type("X=42; echo s$((1))t\n")
    terminal.expect("s1t\r\n")
    terminal.kill()
    terminal = Terminal(cradle, "attach", "box")
    terminal.expect("# ")
    terminal.type("echo is $X; exit 3\n")
    terminal.expect("is 42\r\n")
    assert terminal.end() == 3


def test_a_shell_in_the_background(cradle: Cradle) -> None:
    """Its output goes to its log, and to who is attached."""
    cradle.ok("run", "-dit", "--name", "box", IMAGE, "sh")
    terminal = Terminal(cradle, "attach", "box")
    terminal.expect("# ")
    terminal.type("tty; echo $((6*7))\n")
    terminal.expect("/dev/pts/0\r\n")
    terminal.expect("42\r\n")
    terminal.type(LEAVE)
    assert terminal.end() == 0
    assert "42\r\n" in cradle.ok("logs", "box")
    terminal = Terminal(cradle, "attach", "box")
    terminal.expect("# ")
    terminal.type("exit 5\n")
    assert terminal.end() == 5


def test_a_window_is_drawn_again(cradle: Cradle) -> None:
    """As large as the terminal that was attached, and told so even if nothing has changed."""
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    cradle.ok("run", "-dit", "--name", "box", IMAGE, "sh", "-c", script)
    wait_until(lambda: "ready" in cradle.ok("logs", "box"), "the trap is set")
    for _ in range(2):
        terminal = Terminal(cradle, "attach", "box")
        terminal.expect("24 80\r\n")
        terminal.type(LEAVE)
        assert terminal.end() == 0


def test_input_of_a_service(cradle: Cradle) -> None:
    """Who attaches may go without ending the input for those who come after."""
    cradle.ok("run", "-di", "--name", "box", IMAGE, "cat")
    for line in (b"one\n", b"two\n"):
        process = cradle.popen("attach", "box", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        process.stdin.close()
        assert process.stdout.readline() == line
        process.terminate()  # an interrupt may be ignored where the tests were started
        assert process.wait(30) in (143, -signal.SIGTERM)
        process.stdout.close()
    assert cradle.ok("ps", "-q") == "box\n"
    assert cradle.ok("logs", "box") == "one\ntwo\n"


def test_output_of_a_service(cradle: Cradle) -> None:
    """From now on, to the end, with its exit status."""
    script = "trap 'echo now' USR1; trap 'echo bye; exit 6' TERM; echo before; "
    script += "while :; do sleep 0.05; done"
    cradle.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", script)
    wait_until(lambda: cradle.ok("logs", "box") == "before\n", "the traps are set")
    process = cradle.popen("attach", "--no-stdin", "box", stdout=subprocess.PIPE)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)

    def is_seen() -> bool:
        cradle.ok("kill", "-s", "USR1", "box")
        return bool(process.stdout and (process.stdout.read() or b"").endswith(b"now\n"))

    wait_until(is_seen, "the output is carried")
    os.set_blocking(process.stdout.fileno(), True)
    cradle.ok("kill", "-s", "TERM", "box")
    output, _ = process.communicate(timeout=30)
    assert output.endswith(b"bye\n")
    assert b"before" not in output
    assert process.returncode == 6


def test_what_is_removed_afterwards_is_not_left(cradle: Cradle) -> None:
    script = "stty raw -echo; echo ready; head -c 2 | wc -c; exit 4"
    terminal = Terminal(cradle, "run", "-it", "--rm", IMAGE, "sh", "-c", script)
    terminal.expect("ready")
    terminal.type(LEAVE)
    terminal.expect("2")
    assert terminal.end() == 4


def test_there_is_nothing_to_attach_to(cradle: Cradle) -> None:
    assert "`cradle ps -a` lists" in cradle.fails("attach", "nosuch")
    cradle.run("run", "--name", "box", IMAGE, "true")
    assert "does not run" in cradle.fails("attach", "box", status=125)
