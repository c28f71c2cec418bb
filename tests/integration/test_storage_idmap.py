"""Mounts whose files have other owners than on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cradled.linux import idmap

# In a process of its own with a mount namespace of its own, as the shim and the workers have one.
SCRIPT = """
import os, sys
from cradled.linux import libc, mount
libc.unshare(0x20000)
mount.mount_raw("", "none", "/", mount.MS_REC | mount.MS_PRIVATE)
type_, source, target, words, *paths = sys.argv[1:]
mount.mount(type_, source, words.split(";"), target)
for path in paths:
    if path.startswith("+"):
        os.close(os.open(path[1:], os.O_CREAT | os.O_WRONLY))
        os.chown(path[1:], 100007, 100008)
    else:
        with open(path, "ab") as file:
            file.write(b"!")
        found = os.stat(path)
        print(found.st_uid, found.st_gid)
print(sum(entry.target == target for entry in mount.mounts()))
print(os.statvfs(target).f_flag & 1)
"""
MAP = "uidmap=0:100000:1000;gidmap=0:200000:1000"


def mounted(type_: str, source: str, target: Path, words: str, *paths: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, type_, source, str(target), words, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Directories a to e, with a file each, and a place to mount on."""
    for name in ("a", "b", "c", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / name / name).write_text(name)
        os.chown(tmp_path / name / name, 5, 6)
    return tmp_path


def test_a_bind_mount(tree: Path) -> None:
    target = tree / "target"
    words = f"{MAP};rbind;rw"
    assert mounted("bind", f"{tree}/a", target, words, f"{target}/a") == ["100005 200006", "1", "0"]
    assert (tree / "a/a").read_text() == "a!"
    assert mounted("bind", f"{tree}/a", target, f"{MAP};bind;ro") == ["1", "1"]


@pytest.mark.parametrize("count", [1, 2, 120])
def test_an_overlay(tree: Path, count: int) -> None:
    target = tree / "target"
    lowers = [f"{tree}/b", f"{tree}/c"][:count]
    for number in range(len(lowers), count):
        lowers.append(f"{tree}/{number}")
        os.mkdir(lowers[-1])
    words = f"{MAP};workdir={tree}/work;upperdir={tree}/upper;lowerdir={':'.join(lowers)}"
    told = mounted("overlay", "overlay", target, words, f"{target}/b", f"+{target}/new")
    assert told == ["100005 200006", "1", "0"]  # and no layer is mounted any more
    assert (tree / "b/b").read_text() == "b"
    upper = {path.name: path.stat() for path in (tree / "upper").iterdir()}
    assert (upper["b"].st_uid, upper["b"].st_gid) == (100005, 200006)  # copied up
    assert (upper["new"].st_uid, upper["new"].st_gid) == (100007, 100008)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (f"{MAP};ro", "tmpfs cannot be mounted with mapped IDs"),
        ("uidmap=x;gidmap=0:1:1", 'bad mapping of IDs "x"'),
        ("uidmap=0:1:1", 'bad mapping of IDs ""'),
        ("uidmap=0:1:10,0:11:10;gidmap=0:1:1", "Invalid argument"),
    ],
)
def test_what_cannot_be(tree: Path, words: str, error: str) -> None:
    command = [sys.executable, "-c", SCRIPT, "tmpfs", "none", f"{tree}/target", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert error in done.stderr


def test_lines_of_a_mapping() -> None:
    assert idmap.lines("0:1000:1,1:100000:65535") == "0 1000 1\n1 100000 65535\n"
