"""Starting and deleting a container of crun without crun, and with it where that is its matter."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.shims import Shim, Status, eventually, has_ended, options, running

from cradled.linux import direct
from cradled.linux.coroutines import Future, Loop

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("crun"), reason="needs root and crun"
)

UNIFIED = Path("/sys/fs/cgroup/unified")
# Debian 12's crun refuses a host with legacy and unified hierarchies.
LEGACY_ONLY = ["unshare", "--mount", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    wrapper = LEGACY_ONLY if UNIFIED.is_mount() else ()
    directory = tmp_path_factory.mktemp("direct")
    with running(directory, runtime="crun", wrapper=wrapper) as shim:
        yield shim


class Runtime:
    """The real crun under its own name, in a program that notes what it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "crun"
        self._asked = directory / "asked"
        self._asked.touch()
        real = shutil.which("crun")
        self.path.write_text(f'#!/bin/sh\necho "$@" >> {self._asked}\nexec {real} "$@"\n')
        self.path.chmod(0o755)

    def asked(self) -> list[str]:
        known = {"create", "start", "delete", "kill"}
        return [w for line in self._asked.read_text().splitlines() for w in line.split()
                if w in known]  # fmt: skip


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path)


def create(shim: Shim, runtime: Runtime, id: str, *args: str) -> int:
    chosen = options(binary_name=str(runtime.path), root=shim.runc_root)
    return shim.create(id, *args, options=chosen)


def notes(shim: Shim, id: str) -> Path:
    return Path(shim.runc_root) / shim.mark / id


def groups(shim: Shim, id: str) -> list[Path]:
    path = json.loads((notes(shim, id) / "status").read_text())["cgroup-path"]
    found = [each for each in Path("/sys/fs/cgroup").glob(f"*{path}") if each.is_dir()]
    found += [each for each in [Path(f"/sys/fs/cgroup{path}")] if each.is_dir()]
    assert found
    return found


def test_crun_is_asked_to_create_only(shim: Shim, runtime: Runtime) -> None:
    create(shim, runtime, "plain", "/bin/sh", "-c", "exit 4")
    members = groups(shim, "plain")
    shim.call("Start", id="plain")
    assert not (notes(shim, "plain") / "exec.fifo").exists()
    assert shim.wait("plain") == 4
    shim.call("Delete", id="plain")
    assert runtime.asked() == ["create"]
    assert not any(path.exists() for path in members)
    assert not notes(shim, "plain").exists()


@pytest.mark.parametrize(
    ("stage", "asked"),
    [("poststart", ["create", "start"]), ("poststop", ["create", "delete"])],
)
def test_hooks_are_crun_s(shim: Shim, runtime: Runtime, stage: str, asked: list[str]) -> None:
    ran = runtime.path.parent / "ran"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat; echo >> {ran}"]}
    config = shim.bundle(stage) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hooks": {stage: [hook]}}))
    create(shim, runtime, stage)
    shim.call("Start", id=stage)
    shim.wait(stage)
    shim.call("Delete", id=stage)
    assert runtime.asked() == asked
    assert ran.read_text() == "\n"


def test_what_cannot_be_removed_is_left_to_crun(shim: Shim, runtime: Runtime) -> None:
    create(shim, runtime, "deep", "/bin/true")
    below = groups(shim, "deep")[0] / "below"
    below.mkdir()
    shim.call("Start", id="deep")
    shim.wait("deep")
    shim.call("Delete", id="deep")
    assert runtime.asked()[:2] == ["create", "delete"]
    assert not below.parent.exists()
    assert not notes(shim, "deep").exists()


def test_a_dead_init_is_not_started(shim: Shim, runtime: Runtime) -> None:
    pid = create(shim, runtime, "dead", "/bin/true")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: has_ended(pid))
    with pytest.raises(Status, match=r"cannot start a stopped|not running"):
        shim.call("Start", id="dead")
    shim.call("Delete", id="dead")
    assert not notes(shim, "dead").exists()


def test_one_that_was_never_started_is_deleted_by_crun(shim: Shim, runtime: Runtime) -> None:
    pid = create(shim, runtime, "new", "/bin/true")
    shim.call("Delete", id="new")
    eventually(lambda: has_ended(pid))
    assert runtime.asked()[:2] == ["create", "delete"]


@pytest.mark.parametrize("name", ["status", "config.json"])
@pytest.mark.parametrize("damage", ["", "{", "[]", "no JSON"])
def test_notes_that_cannot_be_read_are_crun_s_matter(
    shim: Shim, runtime: Runtime, name: str, damage: str
) -> None:
    create(shim, runtime, "odd", "/bin/true")
    file = notes(shim, "odd") / name
    kept = file.read_text()
    file.write_text(damage)
    with pytest.raises(Status, match="OCI runtime start failed"):
        shim.call("Start", id="odd")
    file.write_text(kept)
    shim.call("Start", id="odd")
    shim.wait("odd")
    shim.call("Delete", id="odd")
    assert runtime.asked() == ["create", "start"]


def test_a_container_that_waits_for_nobody_is_left_alone(tmp_path: Path) -> None:
    """crun would wait at the FIFO; whoever makes it in time is told by it."""
    group = {"cgroup-path": "/no/such", "systemd-cgroup": False, "scope": ""}
    (tmp_path / "status").write_text(json.dumps(group))
    (tmp_path / "config.json").write_text('{"ociVersion": "1.0.2"}')
    os.mkfifo(tmp_path / "exec.fifo")
    starting = direct.Crun(str(tmp_path)).start(Loop(print), Future())
    with pytest.raises(StopIteration) as ended:
        starting.send(None)
    assert ended.value.value is False
    assert (tmp_path / "exec.fifo").exists()
