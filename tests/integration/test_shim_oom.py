"""Who is killed for want of memory, told before his death is: on the kernel's own news."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.shims import Shim, eventually, options, reply, request, running

from cradled.linux import cgroup, oom
from cradled.linux.cgroup import Cgroup
from cradled.linux.coroutines import Loop
from cradled.linux.oom_watch import OomWatch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 1 << 20
CROWD = 20
UNIFIED = next(
    (path for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
     if os.path.exists(f"{path}/cgroup.controllers")), ""
)  # fmt: skip


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with running(tmp_path) as shim:
        yield shim


def topics(shim: Shim, id: str) -> list[str]:
    return [topic[7:] for topic, event in shim.ear.heard if event.container_id == id]


def test_many_at_once(shim: Shim) -> None:
    """All of one shim, all at the same time."""
    ids = [f"c{number}" for number in range(CROWD)]
    resources = {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}
    for id in ids:  # tail keeps a line without an end in memory
        shim.bundle(id, "/bin/tail", "/dev/zero", resources=resources)
    given = options(binary_name="runc", root=shim.runc_root)
    _all(shim, "Create", ids, lambda id: {"bundle": str(shim.bundles / id), "options": given})
    _all(shim, "Start", ids)
    _all(shim, "Wait", ids)
    _all(shim, "Delete", ids)
    shim.ear.wait("delete", CROWD)
    for id in ids:
        told = topics(shim, id)
        # The kernel may tell twice of one death, and before the start has been told.
        assert [topic for topic in told if topic != "oom"] == ["create", "start", "exit", "delete"]
        assert "oom" in told[: told.index("exit")]
        assert "oom" not in told[told.index("exit") :]


def _all(
    shim: Shim, method: str, ids: list[str], more: Callable[[str], object] = lambda _: {}
) -> None:
    channel = shim.channel
    calls = [channel.send(method, request(method, id=id, **more(id))) for id in ids]  # type: ignore[arg-type]
    for call in calls:
        channel.receive(call, reply(method))


def test_an_exec_that_is_killed(shim: Shim) -> None:
    resources = {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}}
    shim.create("c", "/bin/sleep", "1000", spec={"resources": resources})
    shim.call("Start", id="c")
    shim.exec("c", "e", "/bin/tail", "/dev/zero")
    assert shim.wait("c", "e") == 137
    assert shim.ear.wait("exit").id == "e"
    told = topics(shim, "c")
    assert told.index("oom") < told.index("exit")
    assert shim.state("c").status == 2


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A unified group with a file ``memory.events`` of which the kernel tells news.

    Where the memory controller is elsewhere there is none: ``cgroup.events`` takes its place, and
    being frozen that of having been killed.
    """
    if not UNIFIED:
        pytest.skip("the host has no unified hierarchy")
    path = Path(UNIFIED, "oom-" + secrets.token_hex(4))
    path.mkdir()
    place = tmp_path / "g" / "memory.events"
    place.parent.mkdir()
    place.touch()
    subprocess.run(["mount", "--bind", path / "cgroup.events", place], check=True)
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    monkeypatch.setattr(oom, "kills", _frozen)
    yield path
    subprocess.run(["umount", place], check=True)
    (path / "cgroup.freeze").write_text("0")
    path.rmdir()


def _frozen(fd: int) -> int:
    return int(b"frozen 1" in os.pread(fd, 4096, 0))


def test_the_kernel_tells(group: Path) -> None:
    loop = Loop(lambda error: pytest.fail(str(error)))
    told: list[str] = []

    def killed() -> None:
        told.append("killed")
        loop.stop()

    async def freeze() -> None:
        (group / "cgroup.freeze").write_text("1")

    watch = OomWatch(loop, Cgroup("0::/g\n"), killed)
    loop.spawn(freeze())
    loop.run()
    watch.close()
    _finish(loop)
    assert told == ["killed"]


def test_who_looks_need_not_wait(group: Path) -> None:
    told: list[str] = []
    loop = Loop(lambda error: pytest.fail(str(error)))
    watch = OomWatch(loop, Cgroup("0::/g\n"), lambda: told.append("killed"))
    watch.look()
    assert told == []
    (group / "cgroup.freeze").write_text("1")
    eventually(lambda: "frozen 1" in (group / "cgroup.events").read_text())
    watch.look()
    watch.look()
    assert told == ["killed"]
    watch.close()
    watch.look()
    _finish(loop)


def _finish(loop: Loop) -> None:
    """Let all tasks run to their ends, which wait for nothing any more."""
    while loop.ready:
        loop.ready.pop(0).step()


def test_a_host_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    loop = Loop(lambda error: pytest.fail(str(error)))
    for text in ("0::/g\n", "4:memory:/g\n", "1:name=systemd:/g\n"):
        watch = OomWatch(loop, Cgroup(text), lambda: pytest.fail("nothing was told"))
        watch.look()
        watch.close()
    assert loop.ready == []
