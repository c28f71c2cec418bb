import gzip
import hashlib
import io
import json
import os
import socket
import stat
import tarfile
from pathlib import Path

import pytest

from cradled.client import pack
from cradled.errors import InvalidArgument


def build(root: Path) -> Path:
    """A tree with most kinds of entries; made in another order each time it matters."""
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"#!/bin/sh\n" * 50_000)
    (root / "bin/tool").chmod(0o4755)
    os.link(root / "bin/tool", root / "bin/again")
    (root / "bin/link").symlink_to("tool")
    (root / "ümlaut").write_text("x")
    os.mkfifo(root / "fifo", 0o640)
    (root / ("long" * 40)).write_text("deep")
    for path in sorted(root.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000.75), follow_symlinks=False)
    return root


def members(layer: pack.Layer) -> dict[str, tarfile.TarInfo]:
    layer.file.seek(0)
    raw = gzip.decompress(layer.file.read())
    assert layer.diff_id == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return {member.name: member for member in archive}


def test_layer_has_every_entry(tmp_path: Path) -> None:
    with (layer := pack.pack_layer(build(tmp_path / "tree"))).file:
        found = members(layer)
        layer.file.seek(0)
        blob = layer.file.read()
    assert layer.descriptor.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert layer.descriptor.size == len(blob)
    assert list(found) == sorted(found, key=os.fsencode)
    assert found["bin"].isdir()
    assert found["bin/again"].isreg()
    assert found["bin/again"].mode == 0o4755
    assert (found["bin/tool"].islnk(), found["bin/tool"].linkname) == (True, "bin/again")
    assert (found["bin/link"].issym(), found["bin/link"].linkname) == (True, "tool")
    assert found["fifo"].isfifo()
    assert "ümlaut" in found
    assert "long" * 40 in found
    assert {member.mtime for member in found.values()} == {1_600_000_000}
    assert {(m.uid, m.gid, m.uname) for m in found.values()} == {(os.geteuid(), os.getegid(), "")}


def test_same_tree_same_digest(tmp_path: Path) -> None:
    layers = [pack.pack_layer(build(tmp_path / name)) for name in ("one", "other")]
    for layer in layers:
        layer.file.close()
    assert layers[0].descriptor == layers[1].descriptor
    assert layers[0].diff_id == layers[1].diff_id


def test_sockets_are_left_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        with (layer := pack.pack_layer(tmp_path)).file:
            assert members(layer) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and file capabilities")
def test_devices_and_capabilities(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tmp_path / "ping").write_text("x")
    # VFS_CAP_REVISION_2, effective, CAP_NET_RAW
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(tmp_path / "ping", "security.capability", capability)
    with (layer := pack.pack_layer(tmp_path)).file:
        found = members(layer)
    assert (found["null"].ischr(), found["null"].devmajor, found["null"].devminor) == (True, 1, 3)
    packed = found["ping"].pax_headers["SCHILY.xattr.security.capability"]
    assert packed.encode("utf-8", "surrogateescape") == capability


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no directory"):
        pack.pack_layer(tmp_path / "missing")
    (tmp_path / ".wh.victim").write_text("")
    with pytest.raises(InvalidArgument, match='deletes "victim"'):
        pack.pack_layer(tmp_path)


def test_archive_is_an_oci_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    with (layer := pack.pack_layer(build(tmp_path / "tree"))).file:
        data = b"".join(pack.archive(layer, "docker.io/library/x:1", {"Cmd": ["/bin/tool"]}))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        blobs = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    for name, blob in blobs.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"

    def blob(descriptor: dict[str, object]) -> bytes:
        found = blobs["blobs/" + str(descriptor["digest"]).replace(":", "/")]
        assert len(found) == descriptor["size"]
        return found

    assert json.loads(blobs["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(blobs["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": "docker.io/library/x:1"}
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert config["created"] == "1970-01-02T00:00:00Z"
    assert config["config"] == {"Cmd": ["/bin/tool"]}
    raw = gzip.decompress(blob(manifest["layers"][0]))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(raw).hexdigest()}"]
