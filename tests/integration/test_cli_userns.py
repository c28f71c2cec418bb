"""Containers with users of their own, on layers whose owners are mapped: nothing is copied, and
nothing on disk changes hands."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cradle import Cradle, running_cradle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"
LOOK = "cat /proc/self/uid_map; stat -c '%u %g' /bin/busybox /; touch /new; chown 7:8 /new"


@pytest.fixture(scope="module")
def cradle() -> Iterator[Cradle]:
    """In a place where users other than ours may go through, as they may in /run and /var/lib."""
    directory = Path(tempfile.mkdtemp(prefix="cradled-"))
    directory.chmod(0o711)
    try:
        with running_cradle(directory) as cradle:
            yield cradle
            cradle.remove_containers()
    finally:
        shutil.rmtree(directory)


def test_owners_are_mapped(cradle: Cradle) -> None:
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    told = cradle.ok("run", "--name", "c", *maps, IMAGE, "sh", "-c", LOOK)
    assert told.split() == ["0", "100000", "65536", "0", "0", "0", "0"]
    mounts = cradle.daemon.ctr("snapshots", "mounts", "/x", "c")
    assert "uidmap=0:100000:65536,gidmap=0:200000:65536,workdir=" in mounts
    directories = dict(re.findall(r"(upperdir|lowerdir)=([^,\s]+)", mounts))
    new = os.stat(f"{directories['upperdir']}/new")
    assert (new.st_uid, new.st_gid) == (100007, 200008)
    below = os.stat(f"{directories['lowerdir'].split(':')[-1]}/bin/busybox")
    assert (below.st_uid, below.st_gid) == (0, 0)


def test_one_mapping_is_for_users_and_groups(cradle: Cradle) -> None:
    words = ("run", "--rm", "--uidmap", "0:5000:9", IMAGE, "cat", "/proc/self/gid_map")
    assert cradle.ok(*words).split() == ["0", "5000", "9"]


def test_what_is_no_mapping(cradle: Cradle) -> None:
    done = cradle.run("run", "--uidmap", "0:x", IMAGE)
    assert (done.returncode, 'mapping of IDs "0:x"' in done.stderr) == (125, True)
