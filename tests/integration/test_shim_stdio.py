"""The standard streams of real containers, as a client of the FIFOs, a terminal or a logger sees
them."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness.shims import (
    Channel,
    Fifos,
    Shim,
    Status,
    eventually,
    finish,
    options,
    reply,
    request,
    running,
    start,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 1 << 20


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A shim that waits for the rest of output for a second."""
    haste = "import cradled.shim.container as container; container.DRAIN = 1.0"
    with running(tmp_path_factory.mktemp("hasty"), prelude=haste) as shim:
        yield shim


@pytest.fixture
def fifos(tmp_path: Path) -> Iterator[Fifos]:
    fifos = Fifos(tmp_path / "fifos", "stdin", "stdout", "stderr")
    yield fifos
    fifos.close()


def test_output_and_its_end(shim: Shim, fifos: Fifos) -> None:
    start(shim, "out", "echo out; echo err >&2; exit 4",
          stdout=fifos.paths["stdout"], stderr=fifos.paths["stderr"])  # fmt: skip
    assert fifos.read("stdout") == b"out\n"
    assert fifos.read("stderr") == b"err\n"
    state = shim.state("out")
    assert (state.stdin, state.stdout, state.stderr) == (
        "", fifos.paths["stdout"], fifos.paths["stderr"])  # fmt: skip
    assert finish(shim, "out") == 4


def test_output_ends_when_the_process_closes_it(shim: Shim, fifos: Fifos) -> None:
    start(shim, "early", "echo out; exec >&- 2>&-; sleep 1000", stdout=fifos.paths["stdout"])
    assert fifos.read("stdout") == b"out\n"
    assert shim.state("early").status == 2
    shim.call("Kill", id="early", signal=9)
    finish(shim, "early")


def test_much_output_is_whole(shim: Shim, fifos: Fifos) -> None:
    script = "dd if=/dev/zero bs=65536 count=1024 2>/dev/null | tr '\\0' x"
    start(shim, "much", script, stdout=fifos.paths["stdout"])
    data = fifos.read("stdout")
    assert len(data) == 64 * MIB
    assert data.strip(b"x") == b""
    assert finish(shim, "much") == 0


def test_input_ends_only_by_close_io(shim: Shim, fifos: Fifos) -> None:
    start(shim, "in", "cat; echo end", stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])
    fd = fifos.open_stdin()
    os.write(fd, b"one ")
    fifos.close("stdin")
    assert fifos.read("stdout", until=b"one ") == b"one "
    os.write(fifos.open_stdin(), b"two ")
    assert fifos.read("stdout", until=b"two ") == b"two "
    shim.call("CloseIO", id="in", stdin=True)
    os.write(fifos.fds["stdin"], b"three\n")
    fifos.close("stdin")
    assert fifos.read("stdout") == b"three\nend\n"
    assert finish(shim, "in") == 0


def test_much_input_is_whole(shim: Shim, fifos: Fifos) -> None:
    start(shim, "feed", "wc -c", stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])
    fd = fifos.open_stdin()
    os.set_blocking(fd, True)
    for _ in range(64):
        assert os.write(fd, b"y" * 100_001) == 100_001
    fifos.close("stdin")
    shim.call("CloseIO", id="feed", stdin=True)
    assert fifos.read("stdout") == b"6400064\n"
    assert finish(shim, "feed") == 0


def test_clients_come_and_go(shim: Shim, fifos: Fifos, tmp_path: Path) -> None:
    """No SIGPIPE for want of a reader, and what was written meanwhile is read by the next one."""
    start(shim, "reattach", "read a; echo first; read a; echo second; read a; echo third",
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    fd = fifos.open_stdin()
    os.write(fd, b"\n")
    assert fifos.read(until=b"first\n") == b"first\n"
    fifos.close("stdout")
    os.write(fd, b"\n")
    fifos.fds["stdout"] = os.open(fifos.paths["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    assert fifos.read(until=b"second\n") == b"second\n"
    fifos.close("stdout")
    os.write(fd, b"\n")
    assert finish(shim, "reattach") == 0


def test_a_stream_is_whole_whoever_reads_it(shim: Shim, fifos: Fifos) -> None:
    """Client after client goes away in mid-stream; what none has read waits for the next."""
    start(shim, "relay", "i=100000; while [ $i -lt 300000 ]; do i=$((i+1)); echo $i; done",
          stdout=fifos.paths["stdout"])  # fmt: skip
    data = b""
    for _ in range(20):
        data += fifos.read(until=b"\n")
        fifos.close("stdout")
        fifos.open_output()
    data += fifos.read()
    assert data.split() == [b"%d" % number for number in range(100001, 300001)]
    assert finish(shim, "relay") == 0


def test_a_client_that_never_opens(shim: Shim, fifos: Fifos) -> None:
    fifos.close("stdout")
    before = open_fds(shim)
    start(shim, "alone", "echo out; cat; exit 3",
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    shim.call("CloseIO", id="alone", stdin=True)
    assert finish(shim, "alone") == 3
    assert open_fds(shim) == before


def test_fifos_that_are_removed(shim: Shim, fifos: Fifos) -> None:
    """Who has one open goes on using it."""
    start(shim, "removed", "read line; echo got $line",
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    fd = fifos.open_stdin()
    for path in fifos.paths.values():
        os.unlink(path)
    os.write(fd, b"it\n")
    assert fifos.read() == b"got it\n"
    assert finish(shim, "removed") == 0


def test_a_client_that_is_killed_while_it_types(shim: Shim, fifos: Fifos) -> None:
    start(shim, "typist", "cat", stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])
    script = f"exec >{fifos.paths['stdin']}; echo half; kill -9 $$"
    assert subprocess.run(["/bin/sh", "-c", script], check=False).returncode == -9
    assert fifos.read(until=b"half\n") == b"half\n"
    os.write(fifos.open_stdin(), b"and half\n")
    fifos.close("stdin")
    shim.call("CloseIO", id="typist", stdin=True)
    assert fifos.read() == b"and half\n"
    assert finish(shim, "typist") == 0


def test_input_nobody_takes(shim: Shim, fifos: Fifos) -> None:
    """A process that closes its input, and a client that goes on: it learns of it by EPIPE."""
    start(shim, "deaf", "exec <&-; echo closed; exec sleep 1000",
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    fd = fifos.open_stdin()
    fifos.read(until=b"closed\n")

    def is_refused() -> bool:
        try:
            os.write(fd, b"x" * 100)
        except BrokenPipeError:
            return True
        return False

    eventually(is_refused)
    shim.call("CloseIO", id="deaf", stdin=True)
    shim.call("Kill", id="deaf", signal=9)
    finish(shim, "deaf")


def test_nobody_reads_and_nobody_is_busy(shim: Shim, fifos: Fifos) -> None:
    """What fills pipe and FIFO stops, the shim sleeps, and it goes on once somebody reads."""
    start(shim, "unread", "dd if=/dev/zero bs=100000 count=10; echo end",
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    eventually(lambda: _is_blocked(shim.state("unread").pid))
    os.write(fifos.open_stdin(), b"y" * 60000)  # the shim has taken that, the process does not
    before = _wakeups(shim.pid)
    time.sleep(0.3)
    assert _wakeups(shim.pid) - before <= 3
    assert fifos.read() == bytes(1_000_000) + b"end\n"
    assert finish(shim, "unread") == 0


def _wakeups(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks + sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def _is_blocked(pid: int) -> bool:
    """Whether a process of the container, whose init may be a shell, waits for a pipe."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    try:
        return any("pipe" in Path(f"/proc/{each}/wchan").read_text() for each in (pid, *children))
    except FileNotFoundError:  # a child has just ended
        return False


def test_output_that_does_not_end_holds_deletion_up_for_a_while_only(
    hasty: Shim, fifos: Fifos, tmp_path: Path
) -> None:
    """Output nobody reads, and pipes and terminals that a child in the background keeps."""
    start(hasty, "unread", "dd if=/dev/zero bs=2000000 count=1", stdout=fifos.paths["stdout"])
    start(hasty, "kept", "sleep 1000")
    more = Fifos(tmp_path / "more", "pipe", "terminal")
    background = "trap '' HUP; sleep 1000 & echo started"
    hasty.exec("kept", "pipe", "/bin/sh", "-c", background, stdout=more.paths["pipe"])
    hasty.exec("kept", "tty", "/bin/sh", "-c", background, terminal=True,
               stdout=more.paths["terminal"])  # fmt: skip
    eventually(lambda: _is_blocked(hasty.state("unread").pid))
    hasty.call("Kill", id="unread", signal=9)
    assert hasty.wait("unread") == 137
    for exec_id in ("pipe", "tty"):
        assert hasty.wait("kept", exec_id) == 0
    channel = Channel(hasty.path)
    deletions = [
        channel.send("Delete", request("Delete", id=id, exec_id=exec_id))
        for id, exec_id in (("unread", ""), ("kept", "pipe"), ("kept", "tty"))
    ]
    assert hasty.state("kept").status == 2  # meanwhile others are served
    statuses = [channel.receive(stream, reply("Delete")).exit_status for stream in deletions]
    assert statuses == [137, 0, 0]
    channel.close()
    assert (more.read("pipe"), more.read("terminal")) == (b"started\n", b"started\r\n")
    more.close()
    hasty.call("Kill", id="kept", signal=9)
    finish(hasty, "kept")


def test_no_streams_is_dev_null(shim: Shim) -> None:
    shim.create("null", "/bin/sleep", "1000")
    shim.call("Start", id="null")
    pid = shim.state("null").pid
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)}
    assert targets == {"/dev/null"}
    shim.call("Kill", id="null", signal=9)
    finish(shim, "null")


def test_exec_streams(shim: Shim, fifos: Fifos, tmp_path: Path) -> None:
    start(shim, "xio", "sleep 1000")
    shim.exec("xio", "e", "/bin/sh", "-c", "cat; echo err >&2; exit 9",
              stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"],
              stderr=fifos.paths["stderr"])  # fmt: skip
    os.write(fifos.open_stdin(), b"hello")
    fifos.close("stdin")
    shim.call("CloseIO", id="xio", exec_id="e", stdin=True)
    assert (fifos.read("stdout"), fifos.read("stderr")) == (b"hello", b"err\n")
    assert shim.wait("xio", "e") == 9
    shim.call("Delete", id="xio", exec_id="e")
    shim.call("Kill", id="xio", signal=9)
    finish(shim, "xio")


@pytest.mark.parametrize("where", ["init", "exec"])
@pytest.mark.parametrize(
    ("terminal", "streams", "text"),
    [
        (
            False,
            {"stdout": "/no/fifo"},
            "failed to start io pipe copy: unable to copy pipes: containerd-shim: "
            'opening file "/no/fifo" failed: open /no/fifo: no such file or directory',
        ),
        (
            True,
            {"stdout": "/no/fifo"},
            "failed to start console copy: stat /no/fifo: no such file or directory",
        ),
        (
            False,
            {"stdin": "/no/in"},
            "failed to open stdin fifo /no/in: stat /no/in: no such file or directory",
        ),
    ],
    ids=["output", "terminal", "input"],
)
def test_missing_paths(
    shim: Shim, where: str, terminal: bool, streams: dict[str, Any], text: str
) -> None:
    """The texts are the original's, whose shim is of no more use after some of these."""
    id = f"missing{len(os.listdir(shim.bundles))}"
    if where == "exec":
        start(shim, id, "sleep 1000")
    before = open_fds(shim)
    streams = {"terminal": terminal, **streams}
    if where == "init":
        refused = partial(shim.create, id, "/bin/true", spec={"terminal": terminal}, **streams)
    else:
        refused = partial(shim.exec, id, "e", "/bin/true", **streams)
    with pytest.raises(Status) as refusal:
        refused()
    assert refusal.value.message == text
    assert open_fds(shim) == before
    if where == "exec":
        shim.call("Kill", id=id, signal=9)
        finish(shim, id)


def test_terminal(shim: Shim, fifos: Fifos) -> None:
    script = "test -t 0 && echo terminal; read line; stty size; echo got $line; exit 6"
    start(shim, "tty", script, terminal=True,
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    assert fifos.read(until=b"\r\n") == b"terminal\r\n"
    shim.call("ResizePty", id="tty", width=120, height=40)
    os.write(fifos.open_stdin(), b"line\n")
    assert fifos.read() == b"line\r\n40 120\r\ngot line\r\n"
    assert shim.state("tty").terminal
    assert finish(shim, "tty") == 6
    assert not list((shim.bundles / "tty").glob("*.pty"))


def test_terminal_is_hung_up_at_the_end_of_its_input(shim: Shim, fifos: Fifos) -> None:
    start(shim, "hup", "trap 'exit 8' HUP; echo ready; while :; do sleep 0.01; done",
          terminal=True, stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    fifos.read(until=b"ready")
    shim.call("CloseIO", id="hup", stdin=True)
    assert finish(shim, "hup") == 8


def test_the_end_of_input_is_typed(shim: Shim, fifos: Fifos) -> None:
    start(shim, "eof", "cat; echo $TERM; exit 6", terminal=True,
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    os.write(fifos.open_stdin(), b"line\n\x04")
    assert fifos.read() == b"line\r\nline\r\nxterm\r\n"
    assert finish(shim, "eof") == 6


def test_a_terminal_carries_much_both_ways(shim: Shim, fifos: Fifos) -> None:
    """Pasted faster than it is read; the process echoes all of it."""
    start(shim, "paste", "stty raw -echo; echo ready; exec head -c 1000000", terminal=True,
          stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    fifos.read(until=b"ready\n")
    data = os.urandom(1_000_000)
    fd = fifos.open_stdin()
    os.set_blocking(fd, True)
    paste = threading.Thread(target=os.write, args=(fd, data))
    paste.start()
    assert fifos.read() == data
    paste.join()
    assert finish(shim, "paste") == 0


def test_last_output_of_a_terminal_is_not_lost(shim: Shim, fifos: Fifos) -> None:
    """It is in the terminal still when the process exits and when its deletion is asked for."""
    script = "stty raw; dd if=/dev/zero bs=65536 count=1; dd if=/dev/zero bs=2000 count=1"
    start(shim, "late", script, terminal=True, stdout=fifos.paths["stdout"])
    assert shim.wait("late") == 0
    channel = Channel(shim.path)
    deletion = channel.send("Delete", request("Delete", id="late"))
    shim.state("late")
    data = fifos.read()
    assert data.count(0) == 65536 + 2000
    channel.receive(deletion, reply("Delete"))
    channel.close()


def test_a_terminal_that_has_ended_is_not_resized(shim: Shim, fifos: Fifos) -> None:
    """Its descriptor's number may be another terminal's by now."""
    start(shim, "gone", "exit 0", terminal=True, stdout=fifos.paths["stdout"])
    fifos.read()
    shim.wait("gone")
    start(shim, "next", "read x", terminal=True, stdin=fifos.paths["stdin"])
    shim.call("ResizePty", id="next", width=80, height=25)
    shim.call("ResizePty", id="gone", width=1, height=1)
    shim.exec("next", "size", "/bin/sh", "-c", "stty size </dev/console",
              stdout=fifos.paths["stdout"])  # fmt: skip
    assert fifos.read() == b"25 80\n"
    finish(shim, "gone")
    shim.call("Kill", id="next", signal=9)
    finish(shim, "next")


def test_terminal_of_an_exec(shim: Shim, fifos: Fifos) -> None:
    start(shim, "xtty", "sleep 1000")
    script = "test -t 0 && echo terminal; read x; stty size"
    shim.exec("xtty", "e", "/bin/sh", "-c", script, terminal=True,
              stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])  # fmt: skip
    assert fifos.read(until=b"\r\n") == b"terminal\r\n"
    shim.call("ResizePty", id="xtty", exec_id="e", width=80, height=25)
    os.write(fifos.open_stdin(), b"\n")
    assert fifos.read().endswith(b"25 80\r\n")
    shim.call("ResizePty", id="xtty", width=1, height=1)  # no terminal: nothing happens
    shim.wait("xtty", "e")
    shim.call("Kill", id="xtty", signal=9)
    finish(shim, "xtty")


def test_failed_terminal(shim: Shim, fifos: Fifos) -> None:
    shim.bundle("badtty", "/bin/nothing", terminal=True)
    with pytest.raises(Status, match="OCI runtime create failed: "):
        shim.create("badtty", terminal=True, stdout=fifos.paths["stdout"])
    assert not list((shim.bundles / "badtty").glob("*.pty"))
    assert fifos.read() == b""


def test_pipes_have_the_owner_asked_for(shim: Shim, fifos: Fifos) -> None:
    shim.create("owner", "/bin/sleep", "1000", stdout=fifos.paths["stdout"],
                options=options(io_uid=1234, io_gid=4321))  # fmt: skip
    shim.call("Start", id="owner")
    pid = shim.state("owner").pid
    found = os.stat(f"/proc/{pid}/fd/1")
    # The runtime gives the streams to the container's user afterwards, but not to its group.
    assert found.st_gid == 4321
    shim.call("Kill", id="owner", signal=9)
    finish(shim, "owner")


def open_fds(shim: Shim) -> list[str]:
    names = os.listdir(f"/proc/{shim.pid}/fd")
    return sorted(os.readlink(f"/proc/{shim.pid}/fd/{name}") for name in names)


def test_nothing_is_left_open(shim: Shim, fifos: Fifos) -> None:
    before = open_fds(shim)
    for number in range(3):
        start(shim, f"leak{number}", "echo", stdin=fifos.paths["stdin"],
              stdout=fifos.paths["stdout"], stderr=fifos.paths["stderr"])  # fmt: skip
        finish(shim, f"leak{number}")
    with pytest.raises(Status):
        shim.create("leak", "/bin/nothing", stdin=fifos.paths["stdin"],
                    stdout=fifos.paths["stdout"])  # fmt: skip
    assert open_fds(shim) == before
