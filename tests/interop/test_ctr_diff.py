"""Debian's unmodified ``ctr`` and Diff: a container's changes as a layer, and as an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile

from harness.daemon import Daemon, rows

IMAGE = "docker.io/library/busybox:test"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def raw(daemon: Daemon, *words: str) -> bytes:
    """What ctr writes, byte for byte."""
    command = daemon.ctr_command(*words)
    done = subprocess.run(command, capture_output=True, env=daemon.env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def changed(daemon: Daemon, id: str) -> None:
    """A container that changed its root, like no other, and ended; its snapshot stays."""
    script = f"echo committed > /kept; rm /bin/ls; mkdir /made; echo {id} > /made/one"
    daemon.ctr("run", "--snapshotter", "overlayfs", IMAGE, id, "sh", "-c", script)


def members(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def test_snapshots_diff(daemon: Daemon) -> None:
    changed(daemon, "diffed")
    plain = raw(daemon, "snapshots", "diff", "--media-type", LAYER, "diffed")
    assert {"bin/.wh.ls", "kept", "made", "made/one"} <= set(members(plain))
    assert gzip.decompress(raw(daemon, "snapshots", "diff", "diffed")) == plain
    # Against a snapshot further down, and of one that is committed.
    base = next(row[0] for row in rows(daemon.ctr("snapshots", "ls")) if len(row) == 2)
    more = raw(daemon, "snapshots", "diff", "--media-type", LAYER, base, "diffed")
    assert set(members(plain)) <= set(members(more))
    daemon.ctr("snapshots", "commit", "done", "diffed")
    assert raw(daemon, "snapshots", "diff", "--media-type", LAYER, "done") == plain
    refused = daemon.try_ctr("snapshots", "diff", "--media-type", "x/y", "done")
    assert "unsupported diff media type: x/y: not implemented" in refused.stderr
    daemon.ctr("snapshots", "rm", "done")


def test_what_is_kept_has_its_labels(daemon: Daemon) -> None:
    changed(daemon, "labelled")
    words = ("--keep", "--ref", "my-ref", "--label", "team=storage")
    blob = raw(daemon, "snapshots", "diff", *words, "labelled")
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    listed = next(line for line in daemon.ctr("content", "ls").splitlines() if digest in line)
    diff_id = "sha256:" + hashlib.sha256(gzip.decompress(blob)).hexdigest()
    assert f"containerd.io/uncompressed={diff_id}" in listed
    assert "team=storage" in listed
    daemon.ctr("content", "rm", digest)


def test_a_committed_container_runs(daemon: Daemon) -> None:
    """What ``commit`` of other clients comes to: config and manifest by hand, the layer by Diff."""
    changed(daemon, "committed")
    layer = raw(daemon, "snapshots", "diff", "committed")
    exported = json.loads(raw(daemon, "content", "get", _target(daemon, IMAGE)))
    while "manifests" in exported:
        exported = json.loads(raw(daemon, "content", "get", exported["manifests"][0]["digest"]))
    config = json.loads(raw(daemon, "content", "get", exported["config"]["digest"]))
    diff_id = "sha256:" + hashlib.sha256(gzip.decompress(layer)).hexdigest()
    config["rootfs"]["diff_ids"].append(diff_id)
    config.pop("history", None)
    name = "docker.io/library/committed:test"
    daemon.ctr(
        "images", "import", "-", input=_docker_archive(daemon, name, config, exported, layer)
    )
    daemon.ctr("run", "--rm", name, "again", "test", "-f", "/made/one")
    assert daemon.ctr("run", "--rm", name, "again", "cat", "/kept") == "committed\n"
    assert daemon.try_ctr("run", "--rm", name, "again", "test", "-e", "/bin/ls").returncode == 1
    daemon.ctr("images", "rm", "--sync", name)


def _target(daemon: Daemon, name: str) -> str:
    return next(row[2] for row in rows(daemon.ctr("images", "ls", f"name=={name}")))


def _docker_archive(daemon: Daemon, name: str, config: dict, manifest: dict, top: bytes) -> bytes:
    """An image as ``docker save`` writes it."""
    layers = [raw(daemon, "content", "get", layer["digest"]) for layer in manifest["layers"]]
    files = {f"{number}.tar": data for number, data in enumerate([*layers, top])}
    listed = {"Config": "config.json", "RepoTags": [name], "Layers": list(files)}
    files |= {
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps([listed]).encode(),
    }
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()
