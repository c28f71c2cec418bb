"""The output of real containers in files, and read by logging programs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.shims import (
    Shim,
    Status,
    eventually,
    finish,
    has_ended,
    running,
    start,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HASTE = """
import cradled.shim.container as container, cradled.shim.logs as logs
container.DRAIN = 1.0
logs.READY, logs.GRACE, logs._LAST = 0.5, 0.5, 0.1
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A shim that loses patience soon."""
    with running(tmp_path_factory.mktemp("hasty"), prelude=HASTE) as shim:
        yield shim


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
    with pytest.raises(Status, match="failed to start binary process: /no/logger: no such"):
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


def make_program(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def children(shim: Shim) -> set[int]:
    words = Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()
    return {pid for pid in map(int, words) if not has_ended(pid)}


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_a_container_outlives_its_logging_program(
    shim: Shim, tmp_path: Path, terminal: bool
) -> None:
    """Under the original its writes fail from then on; here they go nowhere."""
    program = make_program(tmp_path, "exec 5>&-; exit 3")
    id = f"orphan{terminal:d}"
    before = children(shim)
    shim.create(id, "/bin/sh", "-c", "dd if=/dev/zero bs=65536 count=32 && exit 5",
                spec={"terminal": terminal}, terminal=terminal,
                stdout=f"binary://{program}")  # fmt: skip
    eventually(lambda: len(children(shim) - before) == 1)  # the container's init and no logger
    shim.call("Start", id=id)
    assert finish(shim, id) == 5


def test_a_logging_program_that_dies_in_mid_stream(shim: Shim, tmp_path: Path) -> None:
    program = make_program(tmp_path, "exec 5>&-; head -c 100000 <&3 >/dev/null; exit 1")
    script = "i=0; while [ $i -lt 64 ]; do dd if=/dev/zero bs=4096 count=4 2>&1 || exit 7;"
    start(shim, "mid", f"{script} i=$((i+1)); done; exit 5", stdout=f"binary://{program}")
    assert finish(shim, "mid") == 5


def test_a_slow_logging_program_gets_everything(shim: Shim, tmp_path: Path) -> None:
    """It is not told to stop before it has read what was written, and had time to end."""
    script = f"""exec 5>&-
        sleep 0.3
        cat <&3 >{tmp_path}/got
        cat <&4 >>{tmp_path}/got
        sleep 0.1
        echo end >>{tmp_path}/got"""
    program = make_program(tmp_path, script)
    start(shim, "slow", "echo out; echo err >&2", stdout=f"binary://{program}")
    assert finish(shim, "slow") == 0
    assert (tmp_path / "got").read_text() == "out\nerr\nend\n"


def test_a_logging_program_that_does_not_stop(hasty: Shim, tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ >{tmp_path}/pid; exec 5>&-; while :; do sleep 0.01; done"
    program = make_program(tmp_path, script)
    start(hasty, "deaf", "echo out", stdout=f"binary://{program}")
    finish(hasty, "deaf")
    assert has_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_logging_program_that_is_never_ready(hasty: Shim, tmp_path: Path, scheme: str) -> None:
    before = children(hasty)
    program = make_program(tmp_path, "exec sleep 1000")
    with pytest.raises(Status, match=r"logging binary did not call ready in 0 s: "):
        start(hasty, f"never-{scheme}", "true", stdout=f"{scheme}://{program}")
    assert children(hasty) <= before
    assert hasty.connect(f"never-{scheme}").task_pid == 0


def test_an_exec_is_logged_too(shim: Shim, tmp_path: Path) -> None:
    start(shim, "xlog", "sleep 1000")
    program = make_program(tmp_path, f"exec 5>&-; cat <&3 >{tmp_path}/got")
    shim.exec("xlog", "b", "/bin/echo", "by program", stdout=f"binary://{program}")
    shim.exec("xlog", "f", "/bin/echo", "by file", stdout=f"file://{tmp_path}/file")
    for exec_id in ("b", "f"):
        shim.wait("xlog", exec_id)
        shim.call("Delete", id="xlog", exec_id=exec_id)
    assert (tmp_path / "got").read_text() == "by program\n"
    assert (tmp_path / "file").read_text() == "by file\n"
    shim.call("Kill", id="xlog", signal=9)
    finish(shim, "xlog")


def test_a_full_disk_ends_no_container(shim: Shim) -> None:
    start(shim, "full", "dd if=/dev/zero bs=65536 count=32 && exit 5", stdout="file:///dev/full")
    assert finish(shim, "full") == 5
    assert b"of output are lost: No space left on device" in shim.log()


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_a_disk_that_hangs_stops_nobody_else(hasty: Shim, terminal: bool) -> None:
    """What hangs here is a terminal that nobody reads, opened like any other file."""
    threads = f"/proc/{hasty.pid}/task"
    controller, disk = os.openpty()
    id = f"hang{terminal:d}"
    try:
        start(hasty, id, "dd if=/dev/zero bs=65536 count=32; exec sleep 1000", terminal,
              stdout=f"file://{os.ttyname(disk)}")  # fmt: skip
        eventually(lambda: len(os.listdir(threads)) > 1)
        assert hasty.run(f"beside-{id}", "/bin/true") == 0
        hasty.call("Kill", id=id, signal=9)
        assert finish(hasty, id) == 137
    finally:
        os.close(disk)
        os.close(controller)
    eventually(lambda: len(os.listdir(threads)) == 1)
    eventually(lambda: not [link for link in open_files(hasty.pid) if "pts" in link])


def open_files(pid: int) -> list[str]:
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return links


def test_a_file_with_nothing_to_write_costs_no_thread(shim: Shim, tmp_path: Path) -> None:
    threads = f"/proc/{shim.pid}/task"
    start(shim, "idle", "echo out; exec sleep 1000", stdout=f"file://{tmp_path}/log")
    eventually(lambda: (tmp_path / "log").read_text() == "out\n")
    eventually(lambda: len(os.listdir(threads)) == 1)
    shim.call("Kill", id="idle", signal=9)
    finish(shim, "idle")


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("gopher:///x", "unknown STDIO scheme gopher"),
        ("file:///a%zz", 'unable to parse stdout uri: parse "file:///a%zz": invalid URL escape'),
        ("file:///proc/none/log", "/proc/none: no such file or directory"),
        ("file:///dev/null/log", "not a directory"),
        ("file:relative", "open : no such file or directory"),
        ("binary:///no/logger", "failed to start binary process: /no/logger: no such file"),
        ("binary://", "failed to start binary process: : "),
    ],
)
def test_output_that_cannot_be(shim: Shim, uri: str, text: str) -> None:
    before = open_files(shim.pid)
    id = f"refused{len(os.listdir(shim.bundles))}"
    with pytest.raises(Status) as refusal:
        shim.create(id, "/bin/true", stdout=uri)
    assert refusal.value.message.startswith("failed to create init process I/O: ")
    assert text in refusal.value.message
    assert sorted(open_files(shim.pid)) == sorted(before)
