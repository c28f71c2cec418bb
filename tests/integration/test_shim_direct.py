"""Starting and deleting a container of runc without runc, and with it where that is its matter."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.shims import Shim, Status, eventually, has_ended, options, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("direct"), forked=True) as shim:
        yield shim


class Runtime:
    """The real runc under its own name, in a program that notes what it is asked for."""

    def __init__(self, directory: Path, name: str = "runc") -> None:
        self.path = directory / name
        self._asked = directory / "asked"
        self._asked.touch()
        real = shutil.which("runc")
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
    paths = json.loads((notes(shim, id) / "state.json").read_text())["cgroup_paths"]
    assert paths
    return [Path(path) for path in paths.values()]


def test_runc_is_asked_to_create_only(shim: Shim, runtime: Runtime) -> None:
    create(shim, runtime, "plain", "/bin/sh", "-c", "exit 4")
    members = groups(shim, "plain")
    assert all(path.is_dir() for path in members)
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
def test_hooks_are_runc_s(shim: Shim, runtime: Runtime, stage: str, asked: list[str]) -> None:
    ran = runtime.path.parent / "ran"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo >> {ran}"]}
    config = shim.bundle(stage) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hooks": {stage: [hook]}}))
    create(shim, runtime, stage)
    shim.call("Start", id=stage)
    shim.wait(stage)
    shim.call("Delete", id=stage)
    assert runtime.asked() == asked
    assert ran.read_text() == "\n"


def test_what_cannot_be_removed_is_left_to_runc(shim: Shim, runtime: Runtime) -> None:
    create(shim, runtime, "deep", "/bin/true")
    (below,) = [path / "below" for path in groups(shim, "deep") if "/pids/" in str(path)]
    below.mkdir()
    shim.call("Start", id="deep")
    shim.wait("deep")
    shim.call("Delete", id="deep")
    assert runtime.asked() == ["create", "delete"]
    assert not below.parent.exists()
    assert not notes(shim, "deep").exists()


def test_a_dead_init_is_not_started(shim: Shim, runtime: Runtime) -> None:
    pid = create(shim, runtime, "dead", "/bin/true")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: has_ended(pid))
    with pytest.raises(Status, match=r"cannot start a (container that has )?stopped"):
        shim.call("Start", id="dead")
    shim.call("Delete", id="dead")
    assert not notes(shim, "dead").exists()


def test_one_that_was_never_started_is_deleted_by_runc(shim: Shim, runtime: Runtime) -> None:
    pid = create(shim, runtime, "new", "/bin/true")
    shim.call("Delete", id="new")
    eventually(lambda: has_ended(pid))
    assert runtime.asked() == ["create", "delete"]


@pytest.mark.parametrize("damage", ["", "{", '{"config":[]}', "no JSON", "[" * 2000])
def test_notes_that_cannot_be_read_are_runc_s_matter(
    shim: Shim, runtime: Runtime, damage: str
) -> None:
    create(shim, runtime, "odd", "/bin/true")
    kept = (notes(shim, "odd") / "state.json").read_text()
    (notes(shim, "odd") / "state.json").write_text(damage)
    with pytest.raises(Status, match="OCI runtime start failed"):
        shim.call("Start", id="odd")
    (notes(shim, "odd") / "state.json").write_text(kept)
    shim.call("Start", id="odd")
    shim.wait("odd")
    shim.call("Delete", id="odd")
    assert runtime.asked() == ["create", "start"]


def test_another_runtime_does_all_itself(shim: Shim, tmp_path: Path) -> None:
    runtime = Runtime(tmp_path, "wrapped")
    create(shim, runtime, "other", "/bin/true")
    shim.call("Start", id="other")
    shim.wait("other")
    shim.call("Delete", id="other")
    assert [word for word in runtime.asked() if word != "kill"] == ["create", "start", "delete"]
