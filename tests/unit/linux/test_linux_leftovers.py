"""What a runtime has left of a container is removed, and nothing that may be another's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.linux import cgroup, leftovers


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A unified hierarchy of directories and files."""
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").touch()
    monkeypatch.setattr(cgroup, "ROOT", str(root))
    return root


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def group(root: Path, path: str, *pids: int) -> Path:
    directory = root / path
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return directory


def bundle(tmp_path: Path, cgroups_path: object) -> str:
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": cgroups_path}}))
    return str(directory)


def test_processes_of_its_own_group_are_killed(
    root: Path, tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    group(root, "ns/c/below", process.pid)
    group_of_its_own = group(root, "ns/c2", 0, 1 << 22)
    (root / "ns/c/cgroup.procs").write_text("4194304\n")  # one that is gone already
    leftovers.kill(bundle(tmp_path, "/ns/c"), "c")
    assert process.wait() == -9
    assert group_of_its_own.exists()


@pytest.mark.parametrize(
    "path",
    ["/", "/ns", "ns/c", "/ns/c/other", "", None, 5, ["/ns/c"], "system.slice:x:c", "/ns/c/.."],
)
def test_other_groups_are_left_alone(
    root: Path, tmp_path: Path, process: subprocess.Popen[bytes], path: object
) -> None:
    for each in ("", "ns", "ns/c", "ns/c/other"):
        (root / each).mkdir(exist_ok=True)
        (root / each / "cgroup.procs").write_text(f"{process.pid}\n")
    leftovers.kill(bundle(tmp_path, path), "c")
    assert process.poll() is None
    assert leftovers.remove(str(tmp_path / "bundle"), "c", str(tmp_path / "notes"))
    assert process.poll() is None


def test_notes_go_and_what_is_among_them_stays_for_a_next_time(root: Path, tmp_path: Path) -> None:
    where = bundle(tmp_path, "/ns/c")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "state.json").touch()
    assert leftovers.remove(where, "c", str(notes))
    assert not notes.exists()
    (notes / "directory").mkdir(parents=True)
    assert not leftovers.remove(where, "c", str(notes))


def test_it_is_not_tried_for_ever(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "PAUSE", 0.0)
    kept = group(root, "ns/c")  # a file in it: it cannot be removed
    where = bundle(tmp_path, "/ns/c")
    Path(where, "init.pid").touch()
    leftovers.clear(where, "c")
    assert kept.exists()


def test_what_nobody_has_made_is_another_s(
    root: Path, tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    """Two daemons may have containers of one name, in one cgroup, and runtimes with one root."""
    group(root, "ns/c", process.pid)
    (tmp_path / "notes").mkdir()
    where = bundle(tmp_path, "/ns/c")
    leftovers.clear(where, "c", str(tmp_path / "notes"))
    assert (tmp_path / "notes").exists()
    assert process.poll() is None
    Path(where, "init.pid").touch()
    (root / "ns/c/cgroup.procs").write_text(f"{process.pid}\n")
    leftovers.kill(where, "c")
    assert process.wait() == -9
