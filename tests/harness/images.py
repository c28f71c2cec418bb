"""Images for tests, made here: OCI layouts and docker archives from layers given as data."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BUSYBOX = "/bin/busybox"
OCI = "application/vnd.oci.image"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


def machine_architecture() -> str:
    import platform

    return ARCHITECTURE.get(platform.machine(), platform.machine())


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class LayerTar:
    """Builds one layer's tar; entries are owned by root, times are fixed."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", mode: int = 0o644,
            link: str = "", **attributes: object) -> LayerTar:  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
        info.mtime = 1_700_000_000
        for key, value in attributes.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name: str, mode: int = 0o755) -> LayerTar:
        return self.add(name, tarfile.DIRTYPE, mode=mode)

    def symlink(self, name: str, target: str) -> LayerTar:
        return self.add(name, tarfile.SYMTYPE, link=target, mode=0o777)

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@dataclass
class TestImage:
    """Layers (uncompressed tars, bottom first) and a config, ready to be packed."""

    __test__ = False

    name: str
    layers: Sequence[bytes]
    config: dict[str, object] = field(default_factory=dict)
    compress: Callable[[bytes], bytes] = field(default=_gzip)
    suffix: str = "+gzip"

    def config_blob(self) -> bytes:
        return json.dumps({
            "architecture": machine_architecture(), "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in self.layers]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(self.layers))],
        }).encode()  # fmt: skip

    def blobs(self) -> tuple[dict[str, bytes], dict[str, object]]:
        """({digest: blob}, manifest descriptor)."""
        config = self.config_blob()
        packed = [self.compress(layer) for layer in self.layers]
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
            "config": describe(f"{OCI}.config.v1+json", config),
            "layers": [describe(f"{OCI}.layer.v1.tar{self.suffix}", blob) for blob in packed],
        }).encode()  # fmt: skip
        blobs = {sha256(blob): blob for blob in [config, *packed, manifest]}
        return blobs, describe(f"{OCI}.manifest.v1+json", manifest)

    def write_oci_layout(self, path: Path) -> Path:
        """An OCI image layout as a tar."""
        blobs, descriptor = self.blobs()
        descriptor["annotations"] = {
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit(":", 1)[-1],
        }
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [descriptor]}
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
                 "index.json": json.dumps(index).encode()}  # fmt: skip
        files |= {"blobs/sha256/" + digest[7:]: blob for digest, blob in blobs.items()}
        return write_tar(path, files)

    def write_docker_archive(self, path: Path) -> Path:
        """What ``docker save`` writes: manifest.json, a config and plain layer tars."""
        config = self.config_blob()
        config_name = sha256(config)[7:] + ".json"
        names = [f"{sha256(layer)[7:]}/layer.tar" for layer in self.layers]
        manifest = [{"Config": config_name, "RepoTags": [self.name], "Layers": names}]
        files = {config_name: config, "manifest.json": json.dumps(manifest).encode()}
        files |= dict(zip(names, self.layers, strict=True))
        return write_tar(path, files)


def describe(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha256(blob), "size": len(blob)}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return path


def busybox_layer() -> bytes:
    """A root filesystem of Debian's static busybox with a link for each applet."""
    import subprocess

    layer = LayerTar()
    for name in (
        "bin",
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "usr",
        "usr/bin",
        "var",
    ):
        layer.directory(name)
    layer.directory("tmp", 0o1777)
    layer.add("bin/busybox", data=Path(BUSYBOX).read_bytes(), mode=0o755)
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        if applet != "busybox":
            layer.symlink("bin/" + applet, "busybox")
    layer.add("etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    layer.add("etc/group", data=b"root:x:0:\nuser:x:1000:\n")
    return layer.bytes()


def busybox_image(name: str = "docker.io/library/busybox:test") -> TestImage:
    """Two layers: the root filesystem, and one that changes it (whiteout, opaque directory)."""
    second = LayerTar()
    second.add("etc/motd", data=b"hello from the second layer\n")
    second.add("bin/.wh.unlzma")
    config = {"Env": ["PATH=/bin:/sbin", "GREETING=hello"], "Cmd": ["sh"], "WorkingDir": "/"}
    return TestImage(name, [busybox_layer(), second.bytes()], config)
