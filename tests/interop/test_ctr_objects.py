"""Debian's unmodified ``ctr`` on namespaces, images, content, snapshots, leases and plugins."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from harness.daemon import Daemon, rows
from harness.images import busybox_image

IMAGE = "docker.io/library/busybox:test"


def test_version(daemon: Daemon) -> None:
    out = daemon.ctr("version")
    server = out.split("Server:")[1]
    assert "v2.3.4+cradled." in server or daemon.kind == "containerd"
    assert "UUID:" in server


def test_plugins(daemon: Daemon) -> None:
    listed = {tuple(row[:2]): row[-1] for row in rows(daemon.ctr("plugins", "ls"))}
    for key in ("content.v1 content", "snapshotter.v1 overlayfs", "metadata.v1 bolt",
                "gc.v1 scheduler", "runtime.v2 task"):  # fmt: skip
        kind, name = key.split()
        assert listed["io.containerd." + kind, name] == "ok"
    assert (
        not {key for key, state in listed.items() if state == "error"}
        or daemon.kind == "containerd"
    )


def test_namespaces(daemon: Daemon) -> None:
    name = daemon.namespace + "x"
    daemon.ctr("namespaces", "create", name, "k=v")
    assert [name, "k=v"] in rows(daemon.ctr("namespaces", "ls"))
    daemon.ctr("namespaces", "label", name, "k=w")
    assert [name, "k=w"] in rows(daemon.ctr("namespaces", "ls"))
    again = daemon.try_ctr("namespaces", "create", name)
    assert f'namespace "{name}": already exists' in again.stderr
    daemon.ctr("namespaces", "rm", name)
    assert name not in daemon.ctr("namespaces", "ls", "-q").split()


def test_a_namespace_in_use_cannot_be_removed(daemon: Daemon) -> None:
    done = daemon.try_ctr("namespaces", "rm", daemon.namespace)
    text = f'namespace "{daemon.namespace}" must be empty, but it still has images, blobs'
    assert text in done.stderr


def test_images(daemon: Daemon) -> None:
    listed = rows(daemon.ctr("images", "ls"))
    assert IMAGE in [row[0] for row in listed]
    daemon.ctr("images", "tag", IMAGE, "docker.io/library/other:1")
    assert "docker.io/library/other:1" in daemon.ctr("images", "ls", "-q").split()
    daemon.ctr("images", "label", "docker.io/library/other:1", "a=b")
    assert daemon.ctr("images", "ls", "-q", "labels.a==b").split() == ["docker.io/library/other:1"]
    daemon.ctr("images", "rm", "--sync", "docker.io/library/other:1")
    assert daemon.ctr("images", "ls", "-q").split() == [IMAGE]
    checked = rows(daemon.ctr("images", "check"))
    assert checked[0][0] == IMAGE
    assert "complete" in checked[0]


def test_import_of_a_docker_archive(daemon: Daemon, tmp_path: Path) -> None:
    name = "docker.io/library/archived:1"
    path = busybox_image(name).write_docker_archive(tmp_path / "archive.tar")
    daemon.ctr("images", "import", str(path))
    assert name in daemon.ctr("images", "ls", "-q").split()
    assert daemon.ctr("run", "--rm", name, "a1", "cat", "/etc/motd").startswith("hello")
    daemon.ctr("images", "rm", "--sync", name)


def test_export_and_import_again(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    daemon.ctr("images", "export", str(path), IMAGE)
    daemon.ctr("images", "rm", "--sync", IMAGE)
    assert daemon.ctr("images", "ls", "-q") == ""
    daemon.ctr("images", "import", str(path))
    assert daemon.ctr("images", "ls", "-q").split() == [IMAGE]


def test_snapshots(daemon: Daemon, tmp_path: Path) -> None:
    committed = [row[0] for row in rows(daemon.ctr("snapshots", "ls")) if row[-1] == "Committed"]
    top = json.loads(daemon.ctr("snapshots", "info", committed[0]))
    chain = max(
        committed, key=lambda k: json.loads(daemon.ctr("snapshots", "info", k)).get("Parent", "")
    )
    assert top["Kind"] == "Committed"
    daemon.ctr("snapshots", "prepare", "active", chain)
    command = daemon.ctr("snapshots", "mounts", str(tmp_path / "m"), "active")
    assert command.startswith("mount -t overlay overlay")
    (tmp_path / "m").mkdir()
    subprocess.run(command, shell=True, check=True)
    try:
        assert (tmp_path / "m/etc/motd").read_text().startswith("hello")
        (tmp_path / "m/new").write_text("x" * 10_000)
    finally:
        subprocess.run(["umount", str(tmp_path / "m")], check=True)
    usage = rows(daemon.ctr("snapshots", "usage", "active"))
    assert usage[0][0] == "active"
    daemon.ctr("snapshots", "commit", "mine", "active")
    # Nothing holds a view: a collection may take it at any time. What was prepared stays.
    view = daemon.ctr("snapshots", "view", "--mounts", "looking", chain)
    assert "ro" in json.loads(view)[0]["Options"] or json.loads(view)[0]["Type"] == "overlay"
    assert json.loads(daemon.ctr("snapshots", "info", "mine"))["Parent"] == chain
    daemon.ctr("snapshots", "prepare", "child", "mine")
    with_child = daemon.try_ctr("snapshots", "rm", "mine")
    assert "cannot remove snapshot with child" in with_child.stderr
    daemon.ctr("snapshots", "rm", "child")
    daemon.ctr("snapshots", "rm", "mine")
    missing = daemon.try_ctr("snapshots", "info", "mine")
    assert "not found" in missing.stderr


def test_leases(daemon: Daemon) -> None:
    daemon.ctr("leases", "create", "--id", "l1", "a=b")
    assert "l1" in daemon.ctr("leases", "ls", "-q").split()
    assert "already exists" in daemon.try_ctr("leases", "create", "--id", "l1").stderr
    daemon.ctr("leases", "delete", "l1")
    assert "l1" not in daemon.ctr("leases", "ls", "-q").split()
    assert daemon.try_ctr("leases", "delete", "l1").returncode != 0


def test_removed_images_leave_no_content(empty_daemon: Daemon, tmp_path: Path) -> None:
    other = Daemon.__new__(Daemon)
    other.__dict__.update(empty_daemon.__dict__)
    other.namespace = empty_daemon.mark + "gc"
    path = busybox_image("docker.io/library/gone:1").write_oci_layout(tmp_path / "gone.tar")
    other.ctr("images", "import", str(path))
    assert other.ctr("content", "ls", "-q") != ""
    other.ctr("images", "rm", "--sync", "docker.io/library/gone:1")
    assert other.ctr("content", "ls", "-q") == ""
    assert rows(other.ctr("snapshots", "ls")) == []
    other.ctr("namespaces", "rm", other.namespace)
