"""The same calls to Debian's Go shim and to ours: the same answers, events and figures.

Where ours deliberately differs the label is in ``BETTER``, with the reason; what ours says there
is tested by ``test_shim_task``. Numbers of processes and times of day are masked. Calls that end
or hang the Go shim (a request without resources or spec, an input FIFO that is missing) are left
out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from harness.shims import PROCESS, Shim, Status, eventually, finish, options, running

from cradled.api import cgroups_v1_pb2, cgroups_v2_pb2
from cradled.linux import cgroup
from cradled.shim.cgroup import metrics
from cradled.ttrpc.codec import encode

GO = "/usr/bin/containerd-shim-runc-v2"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists(GO), reason="needs Debian's containerd"),
]

BETTER = {
    "create again": "is refused as existing, not by the runtime, whose container it would end",
    "update with half a value": "names the call that failed",
    "close the input of no exec": "is not found, as with every other call",
    "kill by no signal": "need not run the runtime to find out",
    "checkpoint": "names the call that failed",
    "exec after the end": "has a class, as newer originals have it",
    "options of another runtime": "are invalid, not missing",
    "damaged options": "are invalid",
    "resize after the end": "no console is no error",
    "delete what never ran": "tells how it ended",
    "state of exec": "names both ids",
}
EVENTS = 28


class Player:
    """Makes calls and writes down what comes of them."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.script: dict[str, str] = {}

    def play(self, label: str, method: str, id: str = "c", **fields: Any) -> None:
        assert label not in self.script
        try:
            answer = "ok: " + self.masked(self.shim.call(method, id=id, **fields))
        except Status as error:
            answer = f"{error.code}: {self._plain(error.message)}"
        self.script[label] = answer

    def create(self, label: str, id: str, *args: str, **fields: Any) -> None:
        path = self.shim.bundles / id
        if not path.exists():
            self.shim.bundle(id, *args)
        fields.setdefault("options", options(binary_name="runc", root=self.shim.runc_root))
        self.play(label, "Create", id, bundle=str(path), **fields)

    def masked(self, message: Any) -> str:
        text = " ".join(text_format.MessageToString(message).split())
        text = re.sub(r" ?exited_at \{ seconds: -62135596800 \}", "", text)  # Go's zero
        return self._plain(re.sub(r"\b(seconds|nanos|\w*pid): \d+", r"\1: N", text)).strip()

    def _plain(self, text: str) -> str:
        return text.replace(str(self.shim.directory), "<D>").replace(self.shim.mark, "<M>").strip()


def process(*args: str) -> dict[str, Any]:
    url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
    return {"type_url": url, "value": json.dumps({**PROCESS, "args": args}).encode()}


def resources(text: bytes) -> dict[str, Any]:
    return {"type_url": "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            "value": text}  # fmt: skip


def strangers(p: Player) -> None:
    for method in ("State", "Start", "Delete", "Pids", "Pause", "Resume", "Checkpoint", "Kill",
                   "Update", "Wait", "Stats", "CloseIO", "ResizePty", "Exec",
                   "Connect"):  # fmt: skip
        p.play(f"{method} of nothing", method, "nope")


def created(p: Player) -> None:
    p.create("create", "c", "/bin/sleep", "1000")
    p.create("create again", "c")
    for method in ("State", "Connect", "Pause", "Resume", "Checkpoint", "Pids"):
        p.play(f"{method} of created", method)
    p.play("update created", "Update", resources=resources(b'{"pids":{"limit":50}}'))
    p.play("exec in created", "Exec", exec_id="e0", spec=process("/bin/true"))
    p.play("start exec in created", "Start", exec_id="e0")
    p.play("wait for exec in created", "Wait", exec_id="e0")
    p.play("delete exec in created", "Delete", exec_id="e0")


def running_on(p: Player) -> None:
    p.play("start", "Start")
    for method in ("Start", "State", "Delete", "Resume"):
        p.play(f"{method} of running", method)
    p.play("update with half a value", "Update", resources=resources(b"{"))
    for method in ("State", "Start", "Delete", "Kill", "Wait", "ResizePty"):
        p.play(f"{method} of no exec", method, exec_id="x")
    p.play("close the input of no exec", "CloseIO", exec_id="x", stdin=True)
    p.play("kill by 0", "Kill", signal=0)
    p.play("kill by no signal", "Kill", signal=99)
    p.play("kill all by 18", "Kill", signal=18, all=True)
    p.play("checkpoint", "Checkpoint", path=str(p.shim.directory / "checkpoint"))
    p.play("shut down", "Shutdown")
    p.play("shut down for another", "Shutdown", "another")


def execs(p: Player) -> None:
    p.play("exec", "Exec", exec_id="e1", spec=process("/bin/sleep", "1000"))
    p.play("exec again", "Exec", exec_id="e1", spec=process("/bin/sleep", "1000"))
    p.play("kill exec before", "Kill", exec_id="e1", signal=9)
    p.play("close input before", "CloseIO", exec_id="e1", stdin=True)
    p.play("resize before", "ResizePty", exec_id="e1", width=5, height=6)
    p.play("start exec", "Start", exec_id="e1")
    p.play("start exec again", "Start", exec_id="e1")
    p.play("pids with exec", "Pids")
    p.play("delete running exec", "Delete", exec_id="e1")
    p.play("exec of nothing", "Exec", exec_id="e2", spec=process("/bin/nothing"))
    p.play("start exec of nothing", "Start", exec_id="e2")
    p.play("wait for exec of nothing", "Wait", exec_id="e2")
    p.play("delete exec of nothing", "Delete", exec_id="e2")


def paused(p: Player) -> None:
    p.play("pause", "Pause")
    for method in ("Pause", "State", "Start", "Delete", "Pids"):
        p.play(f"{method} of paused", method)
    assert p.shim.state("c", "e1").status == 4
    p.play("exec in paused", "Exec", exec_id="ep", spec=process("/bin/true"))
    p.play("kill exec in paused", "Kill", exec_id="e1", signal=0)
    p.play("update paused", "Update", resources=resources(b'{"pids":{"limit":50}}'))
    p.play("resume", "Resume")
    p.play("kill exec", "Kill", exec_id="e1", signal=15)
    p.play("wait for exec", "Wait", exec_id="e1")
    p.play("kill ended exec", "Kill", exec_id="e1", signal=9)
    p.play("start ended exec", "Start", exec_id="e1")
    p.play("state of exec", "State", exec_id="e1")
    p.play("resize after the end", "ResizePty", exec_id="e1", width=5, height=6)
    p.play("close input after the end", "CloseIO", exec_id="e1", stdin=True)
    p.play("delete exec", "Delete", exec_id="e1")
    p.play("delete exec again", "Delete", exec_id="e1")


def ended(p: Player) -> None:
    p.play("exec that is too late", "Exec", exec_id="late", spec=process("/bin/true"))
    p.play("kill", "Kill", signal=9)
    p.play("wait", "Wait")
    p.play("wait again", "Wait")
    p.play("exec after the end", "Start", exec_id="late")
    p.play("kill after the end", "Kill", signal=9)
    p.play("kill all after the end", "Kill", signal=9, all=True)
    for method in ("State", "Pause", "Resume", "Start", "Checkpoint", "Pids", "Connect"):
        p.play(f"{method} of stopped", method)
    p.play("exec in stopped", "Exec", exec_id="es", spec=process("/bin/true"))
    p.play("update stopped", "Update", resources=resources(b"{}"))
    p.play("delete late exec", "Delete", exec_id="late")
    p.play("delete", "Delete")
    for method in ("Delete", "State", "Connect"):
        p.play(f"{method} of deleted", method)


def failures(p: Player) -> None:
    p.create("program that is missing", "f1", "/bin/nothing")
    p.play("state of what failed", "State", "f1")
    missing = options(binary_name="no-runc", root=p.shim.runc_root)
    p.create("runtime that is missing", "f2", "/bin/true", options=missing)
    p.create("options of another runtime", "f3", options={"type_url": "foo.Bar", "value": b"x"})
    damaged = {"type_url": "containerd.runc.v1.Options", "value": b"\xff\xff"}
    p.create("damaged options", "f4", options=damaged)
    p.create("output that is missing", "f5", "/bin/true", stdout="/nowhere/x")
    p.create("output of another kind", "f6", "/bin/true", stdout="foo:///x")
    shutil.copytree(p.shim.bundles / "f1", p.shim.bundles / "f7", symlinks=True)
    (p.shim.bundles / "f7" / "config.json").unlink()
    p.create("no spec", "f7")


def short_lives(p: Player) -> None:
    p.create("create short", "s1", "/bin/sh", "-c", "exit 7")
    for method in ("Start", "Wait", "Delete"):
        p.play(f"{method} short", method, "s1")
    p.create("create killed", "s2", "/bin/sleep", "1000")
    p.play("kill created", "Kill", "s2", signal=9)
    for method in ("Wait", "Start", "State", "Delete"):
        p.play(f"{method} killed", method, "s2")
    p.create("create restored", "s3", "/bin/true", checkpoint="/nowhere/checkpoint")
    for method in ("State", "Start", "Delete"):
        p.play(f"{method} restored", method, "s3")
    p.create("create frozen", "s4", "/bin/sh", "-c", "sleep 1000 & sleep 1000")
    for method in ("Start", "Pause"):
        p.play(f"{method} frozen", method, "s4")
    p.play("kill frozen", "Kill", "s4", signal=9)
    for method in ("Wait", "Delete"):
        p.play(f"{method} frozen at the end", method, "s4")
    p.create("create what never runs", "s5", "/bin/true")
    p.play("delete what never ran", "Delete", "s5")


def perform(directory: Path, **how: Any) -> tuple[dict[str, str], list[str]]:
    """All answers, and all events in their order."""
    directory.mkdir()
    with running(directory, **how) as shim:
        p = Player(shim)
        for part in (strangers, created, running_on, execs, paused, ended, failures, short_lives):
            part(p)
        shim.ear.wait("delete", 6)
        # Go's leaves this one behind in the runtime.
        shim.program("-bundle", str(shim.bundles / "f5"), "delete", bundle=shim.bundles / "f5")
        heard = [f"{topic} {p.masked(event)}" for topic, event in shim.ear.heard]
    return p.script, [event for event in heard if '"s5"' not in event]


def test_answers_and_events(tmp_path: Path) -> None:
    wanted, told = perform(tmp_path / "go", foreign=GO)
    found, heard = perform(tmp_path / "own")
    differing = {label for label in wanted if wanted[label] != found[label]}
    assert {label: (wanted[label], found[label]) for label in differing - set(BETTER)} == {}
    assert set(BETTER) - differing == set()
    assert heard == told
    assert len(heard) == EVENTS


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on a block device of its own, whose traffic the kernel counts."""
    image, point = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, 32 << 20)
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)


def test_figures(tmp_path: Path, disk: Path) -> None:
    """What Go's shim tells of a container is, field by field, what ours reads from its cgroup."""
    device = os.stat(disk).st_dev
    # Without a limit this kernel counts nothing.
    limit = {"major": os.major(device), "minor": os.minor(device), "rate": 1 << 30}
    resources = {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "pids": {"limit": 77},
        "cpu": {"quota": 20000, "period": 100000},
        "blockIO": {"throttleWriteBpsDevice": [limit]},
    }
    script = """dd if=/dev/zero of=/tmp/x bs=1M count=5 oflag=direct
                dd if=/tmp/x of=/dev/null iflag=direct; echo > /done; exec sleep 1000"""
    directory = tmp_path / "go"
    directory.mkdir()
    with running(directory, foreign=GO) as shim:
        bundle = shim.bundle("c", "/bin/sh", "-c", script, resources=resources)
        spec = json.loads((bundle / "config.json").read_text())
        bind = {"destination": "/tmp", "type": "bind", "source": str(disk), "options": ["rbind"]}
        spec["mounts"].append(bind)
        (bundle / "config.json").write_text(json.dumps(spec))
        pid = shim.create("c")
        shim.call("Start", id="c")
        eventually((bundle / "rootfs" / "done").exists)

        def both() -> tuple[Any, Any]:
            stats = shim.call("Stats", id="c").stats
            version = cgroups_v2_pb2 if "v2" in stats.type_url else cgroups_v1_pb2
            own = metrics(cgroup.of_process(pid))
            assert stats.type_url == own.NAME
            kind: Any = version.Metrics
            return kind.FromString(stats.value), kind.FromString(encode(own))

        eventually(lambda: (pair := both())[0] == pair[1])
        found = both()[1]
        assert (found.pids.limit, found.pids.current) == (77, 1)
        entries = found.io.usage if hasattr(found, "io") else (
            found.blkio.io_service_bytes_recursive
        )  # fmt: skip
        assert (entries[0].major, entries[0].minor) == (limit["major"], limit["minor"])
        shim.call("Kill", id="c", signal=9)
        finish(shim, "c")
