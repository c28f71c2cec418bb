"""The standard streams of real containers, as a client of the FIFOs, a terminal or a logger sees
them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.shims import Fifos, Shim, Status, eventually, options, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 1 << 20


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


@pytest.fixture
def fifos(tmp_path: Path) -> Iterator[Fifos]:
    fifos = Fifos(tmp_path / "fifos", "stdin", "stdout", "stderr")
    yield fifos
    fifos.close()


def start(shim: Shim, id: str, script: str, terminal: bool = False, **streams: Any) -> None:
    spec = {"terminal": terminal}
    shim.create(id, "/bin/sh", "-c", script, spec=spec, terminal=terminal, **streams)
    shim.call("Start", id=id)


def finish(shim: Shim, id: str) -> int:
    status = shim.wait(id)
    shim.call("Delete", id=id)
    return status


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


def test_output_nobody_reads_does_not_hold_up_deletion_for_ever(shim: Shim, fifos: Fifos) -> None:
    start(shim, "unread", "dd if=/dev/zero bs=200000 count=1", stdout=fifos.paths["stdout"])
    # One pipe and one FIFO of 64 KiB hold less than that: it is blocked until it is killed.
    eventually(lambda: _is_blocked(shim.state("unread").pid))
    shim.call("Kill", id="unread", signal=9)
    assert finish(shim, "unread") == 137


def _is_blocked(pid: int) -> bool:
    try:
        waits = Path(f"/proc/{pid}/wchan").read_text()
        return "pipe" in waits
    except OSError:
        return False


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


def test_missing_fifo(shim: Shim, tmp_path: Path) -> None:
    with pytest.raises(Status, match='opening file "/no/fifo" failed: open /no/fifo: no such file or directory'):
        shim.create("nofifo", stdout="/no/fifo")
    with pytest.raises(Status, match="unknown STDIO scheme gopher"):
        shim.create("nofifo", stdout="gopher:///x")


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


def test_file(shim: Shim, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "er" / "log"
    for number in range(2):
        start(shim, f"file{number}", "echo out; echo err >&2", stdout=f"file://{log}")
        finish(shim, f"file{number}")
    assert sorted(log.read_text().split()) == ["err", "err", "out", "out"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o644
    plain = tmp_path / "plain"
    plain.write_text("there\n")
    start(shim, "plain", "echo out; echo err >&2", stdout=str(plain), stderr=str(plain))
    finish(shim, "plain")
    assert sorted(plain.read_text().split()) == ["err", "out", "there"]
    start(shim, "ttyfile", "echo out; echo err >&2", terminal=True, stdout=f"file://{log}")
    finish(shim, "ttyfile")
    assert log.read_bytes().endswith(b"out\r\nerr\r\n")


LOGGER = """#!/bin/sh
env | sort > {out}.env
echo "$@" > {out}.args
{ready}
exec 5>&-
cat <&3 > {out}.3 &
cat <&4 > {out}.4
wait
"""


def make_logger(tmp_path: Path, ready: str) -> Path:
    logger = tmp_path / "logger"
    logger.write_text(LOGGER.format(out=tmp_path / "got", ready=ready))
    logger.chmod(0o755)
    return logger


@pytest.mark.parametrize(
    ("scheme", "ready"),
    [("binary", ":"), ("binary", "echo >&5"), ("binary-v2", "echo >&5")],
    ids=["closes", "writes", "v2"],
)
def test_logging_program(shim: Shim, tmp_path: Path, scheme: str, ready: str) -> None:
    logger = make_logger(tmp_path, ready)
    id = f"log{len(os.listdir(shim.bundles))}"
    start(shim, id, "echo out; echo err >&2", stdout=f"{scheme}://{logger}?a%20b=c+d&key=")
    shim.wait(id)
    eventually(lambda: (tmp_path / "got.4").read_text() == "err\n")
    shim.call("Delete", id=id)
    assert (tmp_path / "got.3").read_text() == "out\n"
    assert (tmp_path / "got.args").read_text() == "a b c d key \n"
    environment = (tmp_path / "got.env").read_text().splitlines()
    assert f"CONTAINER_ID={id}" in environment
    assert f"CONTAINER_NAMESPACE={shim.mark}" in environment
    assert not [line for line in environment if "TTRPC" in line or "MARK" in line]


def test_logging_program_that_is_not_ready(shim: Shim, tmp_path: Path) -> None:
    logger = make_logger(tmp_path, ":")
    with pytest.raises(Status, match="logging binary did not call ready"):
        start(shim, "notready", "true", stdout=f"binary-v2://{logger}")
    with pytest.raises(Status, match='failed to start binary process: /no/logger: no such'):
        start(shim, "notready", "true", stdout="binary:///no/logger")


def test_logging_program_is_told_to_stop(shim: Shim, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    marks = f"trap 'echo told > {tmp_path}/told; exit' TERM; : > {tmp_path}/up"
    logger.write_text(f"#!/bin/sh\n{marks}\nexec 5>&-\nwhile :; do sleep 0.01; done\n")
    logger.chmod(0o755)
    start(shim, "told", "exit 0", stdout=f"binary://{logger}")
    assert finish(shim, "told") == 0
    assert (tmp_path / "told").read_text() == "told\n"


def test_logging_program_on_a_terminal(shim: Shim, tmp_path: Path) -> None:
    logger = make_logger(tmp_path, ":")
    start(shim, "logtty", "test -t 1 && echo out", terminal=True, stdout=f"binary://{logger}")
    shim.wait("logtty")
    eventually(lambda: (tmp_path / "got.3").read_bytes() == b"out\r\n")
    shim.call("Delete", id="logtty")


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


def test_nothing_is_left_open(shim: Shim, fifos: Fifos) -> None:
    def open_fds() -> list[str]:
        names = os.listdir(f"/proc/{shim.pid}/fd")
        return sorted(os.readlink(f"/proc/{shim.pid}/fd/{name}") for name in names)

    before = open_fds()
    for number in range(3):
        start(shim, f"leak{number}", "echo", stdin=fifos.paths["stdin"],
              stdout=fifos.paths["stdout"], stderr=fifos.paths["stderr"])  # fmt: skip
        finish(shim, f"leak{number}")
    with pytest.raises(Status):
        shim.create("leak", "/bin/nothing", stdin=fifos.paths["stdin"],
                    stdout=fifos.paths["stdout"])  # fmt: skip
    assert open_fds() == before
