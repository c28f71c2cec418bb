"""Layers made by Diff of the same two mounts: ours beside the original's, entry for entry."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.trees import Entry, differences, read_tree

from cradled.api import content_pb2, diff_pb2
from cradled.api.types_pb2 import Descriptor, Mount
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub, Transport

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("containerd"), reason="needs containerd"),
]

LAYER = "application/vnd.oci.image.layer.v1.tar"
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
THEN = 1_600_000_000


def write(path: Path, data: bytes | str, mode: int = 0o644, mtime: float = THEN + 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)
    os.utime(path, (mtime, mtime))
    return path


def set_times(top: Path) -> None:
    """Directories have times of their own after what was done in them."""
    for current, directories, _ in os.walk(top):
        for name in directories:
            os.utime(os.path.join(current, name), (THEN, THEN))


def fill_lower(top: Path) -> None:
    for name in ("bin/tool", "bin/other", "etc/conf", "etc/kept", "gone/a", "gone/deep/b",
                 "opaque/x", "opaque/sub/y", "to-file/z", "mode", "owner", "touched", "rewritten",
                 "renamed/from/f", "quiet/untouched/file"):  # fmt: skip
        write(top / name, f"lower {name}")
    write(top / "to-dir", "a file")
    write(top / "whole-second", "first", mtime=THEN)
    write(top / "same-whole-second", "first", mtime=THEN)
    write(top / "capable", "c", 0o755)
    (top / "link").symlink_to("bin/tool")
    (top / "link-later").symlink_to("bin/tool")
    (top / "quiet/empty").mkdir()
    write(top / "linked/a", "linked").with_name("b").hardlink_to(top / "linked/a")
    write(top / "relinked/a", "linked").with_name("c").hardlink_to(top / "relinked/a")
    os.mkfifo(top / "pipe", 0o622)
    set_times(top)


def change(top: Path, *, deletions: bool = True) -> None:
    write(top / "new/dir/file", os.urandom(3_000_000), mtime=THEN + 100.9)
    write(top / "etc/conf", "changed")
    (top / "mode").chmod(0o4711)
    os.chown(top / "owner", 1000, 3_000_000)
    os.utime(top / "touched", (THEN, THEN + 77))
    write(top / "rewritten", "lower rewritten")  # as it was, to the nanosecond
    write(top / "whole-second", "secnd", mtime=THEN)
    write(top / "same-whole-second", "first", mtime=THEN)
    os.setxattr(top / "capable", "security.capability", CAPABILITY)
    os.setxattr(top / "bin/other", "user.note", b"not recorded")
    (top / "bin").chmod(0o1755)
    for name, size in (("x", 90), ("y", 140), ("é", 60)):
        write(top / ("long-" + name * 60) / (name * size), name)
    (top / "long-link").symlink_to("/".join(["z" * 50] * 4))
    write(top / "links/one", "one inode").with_name("two").hardlink_to(top / "links/one")
    (top / "a-first-name").hardlink_to(top / "links/two")
    (top / "relinked/b").hardlink_to(top / "relinked/a")
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mknod(top / "disk", 0o060660, os.makedev(259, 300))
    os.mkfifo(top / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(top / "socket"))
    (top / "empty-dir").mkdir(0o700)
    os.utime(top / "empty-dir", (-100, -100))
    write(top / "far-future", "f", mtime=9_000_000_000)
    if deletions:
        shutil.rmtree(top / "gone")
        shutil.rmtree(top / "opaque")
        write(top / "opaque/new", "n")
        write(top / "opaque/sub/other", "o")
        shutil.rmtree(top / "to-file")
        write(top / "to-file", "now a file")
        (top / "to-dir").unlink()
        write(top / "to-dir/inside", "now a directory")
        (top / "bin/tool").unlink()
        (top / "link").unlink()
        (top / "link").symlink_to("etc/conf")
        (top / "linked/a").unlink()
    set_times(top)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


class Layers:
    """Two directories, and the mounts of an overlay of them."""

    def __init__(self, top: Path) -> None:
        self.lower, self.upper, self.work = top / "lower", top / "upper", top / "work"
        for directory in (self.lower, self.upper, self.work):
            directory.mkdir(parents=True)
        fill_lower(self.lower)
        self.left = [Mount(type="bind", source=str(self.lower), options=["ro", "rbind"])]
        words = [f"workdir={self.work}", f"upperdir={self.upper}", f"lowerdir={self.lower}"]
        self.right = [Mount(type="overlay", source="overlay", options=[*words, "index=off"])]

    @contextlib.contextmanager
    def merged(self) -> Iterator[Path]:
        target = self.work.with_name("merged")
        target.mkdir(exist_ok=True)
        options = ",".join(self.right[0].options)
        subprocess.run(
            ["mount", "-t", "overlay", "-o", options, "overlay", str(target)], check=True
        )
        try:
            yield target
        finally:
            subprocess.run(["umount", str(target)], check=True)


def plain_layers(top: Path) -> Layers:
    """The upper one is a changed copy of the lower one."""
    layers = Layers(top)
    layers.upper.rmdir()
    copy(layers.lower, layers.upper)
    change(layers.upper)
    layers.right = [Mount(type="bind", source=str(layers.upper), options=["rw", "rbind"])]
    return layers


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    made = {kind: Daemon(tmp_path_factory.mktemp(kind), kind) for kind in ("cradled", "containerd")}
    for daemon in made.values():
        daemon.start()
    try:
        yield made
    finally:
        for daemon in made.values():
            daemon.destroy()


@pytest.fixture
async def channels(daemons: dict[str, Daemon]) -> AsyncIterator[dict[str, Transport]]:
    async with contextlib.AsyncExitStack() as stack:
        opened = {}
        for kind, daemon in daemons.items():
            opened[kind] = await grpc_client.connect(str(daemon.socket))
            stack.push_async_callback(opened[kind].aclose)
        yield opened


HEADERS = [("containerd-namespace", "test")]


async def make(channel: Transport, layers: Layers, media_type: str = LAYER, **more: Any) -> bytes:
    """The blob that Diff makes, uncompressed if it is not."""
    request = diff_pb2.DiffRequest(
        left=layers.left, right=layers.right, media_type=media_type, **more
    )
    made = (await Stub(channel, diff_pb2.Diff, HEADERS).diff(request, timeout=60)).diff
    assert made.media_type == media_type
    content = Stub(channel, content_pb2.Content, HEADERS)
    request = content_pb2.ReadContentRequest(digest=made.digest)
    blob = b"".join([part.data async for part in content.read(request)])
    assert len(blob) == made.size
    assert made.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    labels = (await content.info(content_pb2.InfoRequest(digest=made.digest))).info.labels
    if media_type == LAYER:
        assert "containerd.io/uncompressed" not in labels
        return blob
    tar = gzip.decompress(blob)
    assert labels["containerd.io/uncompressed"] == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    return tar


def members(tar: bytes) -> list[dict[str, Any]]:
    """Every entry with all that its header says; a whiteout's time is not the same everywhere."""
    listed = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for info in archive:
            said = info.get_info()
            said["pax"] = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY")}
            said["data"] = b""
            if info.isreg():
                said["data"] = hashlib.sha256(archive.extractfile(info).read()).digest()  # type: ignore[union-attr]
            if ".wh." in info.name:
                said["mtime"] = said["chksum"] = 0
            listed.append(said)
    return listed


async def test_the_same_entries(channels: dict[str, Transport], tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    with layers.merged() as merged:
        change(merged)
    ours, theirs = [members(await make(channel, layers)) for channel in channels.values()]
    assert ours == theirs
    names = [entry["name"] for entry in ours]
    assert {"gone", ".wh.gone", "opaque/.wh.x", "bin/.wh.tool"} - set(names) == {"gone"}
    assert "socket" not in names
    assert not any(name.startswith("quiet") for name in names)


async def test_the_same_bytes(channels: dict[str, Transport], tmp_path: Path) -> None:
    """Without deletions, whose time is the present in old versions of the original."""
    layers = Layers(tmp_path)
    with layers.merged() as merged:
        change(merged, deletions=False)
    for media_type in (LAYER, f"{LAYER}+gzip"):
        ours, theirs = [await make(channel, layers, media_type) for channel in channels.values()]
        assert len(ours) > 3_000_000
        assert ours == theirs


async def test_every_file_of_plain_directories(
    channels: dict[str, Transport], tmp_path: Path
) -> None:
    """Neither is an overlay: both trees are walked."""
    layers = plain_layers(tmp_path)
    ours, theirs = [members(await make(channel, layers)) for channel in channels.values()]
    assert ours == theirs
    assert any(entry["name"] == "relinked/a" for entry in ours)
    layers.left = []
    ours, theirs = [members(await make(channel, layers)) for channel in channels.values()]
    assert ours == theirs
    assert any(entry["name"] == "quiet/untouched/file" for entry in ours)


async def store(channel: Transport, blob: bytes) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    requests = [
        content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref=digest, data=blob[: 1 << 20])
    ]
    for at in range(1 << 20, len(blob), 1 << 20):
        part = blob[at : at + (1 << 20)]
        requests.append(
            content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=at, data=part)
        )
    commit = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, offset=len(blob), total=len(blob), expected=digest
    )
    async with Stub(channel, content_pb2.Content, HEADERS).write() as stream:
        for request in [*requests, commit]:
            await stream.send(request)
        await stream.done()
        assert [reply async for reply in stream][-1].digest == digest
    return Descriptor(media_type=LAYER, digest=digest, size=len(blob))


def whole_seconds(tree: dict[str, Entry]) -> dict[str, Entry]:
    return {
        path: entry._replace(mtime=entry.mtime // 10**9)
        for path, entry in tree.items()
        if path not in (".", "socket")  # not in a layer
    }


async def test_applied_by_both_it_is_the_tree_again(
    channels: dict[str, Transport], tmp_path: Path
) -> None:
    layers = plain_layers(tmp_path)
    os.removexattr(layers.upper / "bin/other", "user.note")
    expected = whole_seconds(read_tree(layers.upper))
    made = {f"made by {kind}": await make(channel, layers) for kind, channel in channels.items()}
    for maker, blob in made.items():
        for kind, channel in channels.items():
            target = tmp_path / f"{maker}, applied by {kind}"
            copy(layers.lower, target)
            mount = Mount(type="bind", source=str(target), options=["rw", "rbind"])
            apply = diff_pb2.ApplyRequest(
                diff=await store(channel, blob + maker.encode()), mounts=[mount]
            )
            await Stub(channel, diff_pb2.Diff, HEADERS).apply(apply, timeout=60)
            assert differences(whole_seconds(read_tree(target)), expected) == []
