"""Blocking. A directory as an image: one layer, and the OCI layout that carries it.

The same tree gives the same digests on every host: entries are sorted, owners are numbers, times
are whole seconds, and the image is as old as ``SOURCE_DATE_EPOCH`` or the epoch itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from isal import isal_zlib

from cradled import digest
from cradled.core.values import Descriptor
from cradled.errors import InvalidArgument
from cradled.oci import image, platforms

CHUNK = 1 << 20

_GZIP_BITS = 31
_GZIP_LEVEL = 1
_WHITEOUT = ".wh."
_OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
# Labels of a security module on this host mean nothing on another; ACLs and the rest of system.*
# and trusted.* belong to the file system.
_XATTRS = ("security.capability", "user.")


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed directory: ``file`` holds the compressed tar, at its start; the caller closes it."""

    file: BinaryIO
    descriptor: Descriptor
    diff_id: str


def pack_layer(directory: Path) -> Layer:
    """Pack a tree into a temporary file that has no name.

    Raises InvalidArgument for what is no directory or has names that mean something in a layer.
    """
    if not directory.is_dir():
        raise InvalidArgument(f'"{directory}" is no directory')
    file = tempfile.TemporaryFile()  # noqa: SIM115  handed to the caller
    try:
        sink = _LayerSink(file)
        with tarfile.open(
            fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK
        ) as archive:
            _Packer(archive, os.fspath(directory)).pack()
        size = sink.finish()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    descriptor = Descriptor(image.LAYER_GZIP, f"sha256:{sink.blob.hexdigest()}", size)
    return Layer(file, descriptor, f"sha256:{sink.raw.hexdigest()}")


def archive(layer: Layer, name: str, config: Mapping[str, Any]) -> Iterator[bytes]:
    """The image as a tar archive of an OCI layout, in chunks.

    ``config`` is the ``config`` object of the image: ``Cmd``, ``Env`` and the like.
    """
    config_blob = _config(layer.diff_id, config)
    config_descriptor = _describe(image.CONFIG, digest.of(config_blob), len(config_blob))
    described = layer.descriptor
    manifest_blob = _json(
        {
            "schemaVersion": 2,
            "mediaType": image.MANIFEST,
            "config": config_descriptor,
            "layers": [_describe(described.media_type, described.digest, described.size)],
        }
    )
    manifest_digest = digest.of(manifest_blob)
    manifest = _describe(image.MANIFEST, manifest_digest, len(manifest_blob))
    manifest["annotations"] = {image.IMAGE_NAME: name}
    index = {"schemaVersion": 2, "mediaType": image.INDEX, "manifests": [manifest]}
    for path, data in (
        ("oci-layout", _OCI_LAYOUT),
        ("index.json", _json(index)),
        (_blob_path(manifest_digest), manifest_blob),
        (_blob_path(config_descriptor["digest"]), config_blob),
    ):
        yield _member(path, len(data)) + data + _padding(len(data))
    yield _member(_blob_path(described.digest), described.size)
    while chunk := layer.file.read(CHUNK):
        yield chunk
    yield _padding(described.size) + bytes(2 * tarfile.BLOCKSIZE)


class _LayerSink(io.RawIOBase):
    """Hashes what is written, compresses it, hashes again, and stores it."""

    def __init__(self, file: BinaryIO) -> None:
        self.raw = hashlib.sha256()
        self.blob = hashlib.sha256()
        self._file = file
        self._size = 0
        self._compress = isal_zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_BITS)

    def write(self, data: Any, /) -> int:
        self.raw.update(data)
        self._store(self._compress.compress(data))
        return len(data)

    def finish(self) -> int:
        """Returns the compressed size."""
        self._store(self._compress.flush())
        self._file.flush()
        return self._size

    def _store(self, data: bytes) -> None:
        self.blob.update(data)
        self._size += self._file.write(data)


class _Packer:
    def __init__(self, archive: tarfile.TarFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._links: dict[tuple[int, int], str] = {}

    def pack(self) -> None:
        self._directory("")

    def _directory(self, below: str) -> None:
        names = sorted(os.listdir(f"{self._root}/{below}"), key=os.fsencode)
        for name in names:
            path = below + name
            if name.startswith(_WHITEOUT):
                raise InvalidArgument(f'"{path}": a name that deletes "{name[4:]}" in a layer')
            status = os.lstat(f"{self._root}/{path}")
            if stat.S_ISSOCK(status.st_mode):
                continue
            self._entry(path, status)
            if stat.S_ISDIR(status.st_mode):
                self._directory(path + "/")

    def _entry(self, path: str, status: os.stat_result) -> None:
        full = f"{self._root}/{path}"
        info = tarfile.TarInfo(path)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = int(status.st_mtime)
        info.pax_headers = _xattrs(full)
        if self._is_linked(info, path, status):
            self._archive.addfile(info)
        elif stat.S_ISREG(status.st_mode):
            info.size = status.st_size
            with open(full, "rb") as file:
                self._archive.addfile(info, file)
        else:
            info.type = _TYPES[stat.S_IFMT(status.st_mode)]
            if info.type == tarfile.SYMTYPE:
                info.linkname = os.readlink(full)
            elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
                info.devmajor = os.major(status.st_rdev)
                info.devminor = os.minor(status.st_rdev)
            self._archive.addfile(info)

    def _is_linked(self, info: tarfile.TarInfo, path: str, status: os.stat_result) -> bool:
        """Whether this file was packed before, under another name."""
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode):
            return False
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        info.type, info.linkname, info.pax_headers = tarfile.LNKTYPE, first, {}
        return True


_TYPES = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def _xattrs(path: str) -> dict[str, str]:
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:  # the file system has none
        return {}
    return {
        f"SCHILY.xattr.{name}": os.getxattr(path, name, follow_symlinks=False).decode(
            "utf-8", "surrogateescape"
        )
        for name in names
        if name.startswith(_XATTRS)
    }


def _config(diff_id: str, config: Mapping[str, Any]) -> bytes:
    platform = platforms.default()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    document: dict[str, Any] = {
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "cradle pack"}],
    }
    if platform.variant:
        document["variant"] = platform.variant
    return _json(document)


def _describe(media_type: str, of: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": of, "size": size}


def _blob_path(of: str) -> str:
    return "blobs/" + of.replace(":", "/")


def _member(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
