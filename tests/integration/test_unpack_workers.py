"""Layers through the applier, the pool, the zygote and a confined worker, to real overlays."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.images import LayerTar
from harness.trees import Entry, differences, read_tree

from cradled import errors
from cradled.core.mount import Mount
from cradled.core.values import Descriptor
from cradled.differs.apply import WalkingApplier
from cradled.digest import of
from cradled.workers.pool import Pool
from cradled.zygote.client import Zygote

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    zygote = Zygote()
    pool = Pool(zygote, str(tmp_path), idle=60)
    yield pool
    await pool.aclose()
    await zygote.aclose()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


class MemoryBlob:
    """A blob without a descriptor, as one that lies elsewhere."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def fileno(self) -> int:
        return -1

    async def read(self, offset: int, length: int, /) -> bytes:
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


class Snapshots:
    """Overlay layers in directories, as the snapshotter keeps them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.layers: list[Path] = []

    def next(self, *, rebase: bool = False) -> list[Mount]:
        place = self.top / f"layer{len(self.layers)}"
        for name in ("fs", "work"):
            (place / name).mkdir(parents=True)
        lowers = ":".join(str(layer) for layer in reversed(self.layers))
        self.layers.append(place / "fs")
        words = [f"workdir={place}/work", f"upperdir={place}/fs"]
        if lowers and not rebase:
            words.append(f"lowerdir={lowers}")
        elif not lowers:
            return [Mount("bind", str(place / "fs"), ("rw", "rbind"))]
        return [Mount("overlay", "overlay", (*words, "index=off"))]

    @contextmanager
    def merged(self) -> Iterator[Path]:
        target = self.top / "merged"
        target.mkdir(exist_ok=True)
        lowers = ":".join(str(layer) for layer in reversed(self.layers))
        empty = self.top / "empty"
        empty.mkdir(exist_ok=True)
        words = f"lowerdir={lowers}:{empty},index=off"
        subprocess.run(["mount", "-t", "overlay", "-o", words, "overlay", target], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", target], check=True)

    def tree(self) -> dict[str, Entry]:
        with self.merged() as target:
            return read_tree(target)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path)


async def apply(
    pool: Pool, layer: bytes, mounts: Sequence[Mount], media_type: str = OCI_LAYER, **more: bool
) -> Descriptor:
    blob = MemoryBlob(layer)
    what = Descriptor(media_type, of(layer), len(layer))
    return await WalkingApplier(pool).apply(what, blob, mounts, **more)


def names(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize("sync", [False, True])
async def test_whiteouts_become_overlays_own(pool: Pool, snapshots: Snapshots, sync: bool) -> None:
    base = LayerTar().add("a").add("d/x").add("d/y").add("e/z").bytes()
    await apply(pool, base, snapshots.next(), sync_fs=sync)
    change = LayerTar().add(".wh.a", uid=5, gid=6).add("d/.wh..wh..opq").add("d/new")
    change.add("e/.wh.z")
    packed = gzip.compress(change.bytes())
    applied = await apply(pool, packed, snapshots.next(), OCI_LAYER + "+gzip", sync_fs=sync)
    assert applied == Descriptor(OCI_LAYER, of(change.bytes()), len(change.bytes()))
    upper = snapshots.layers[-1]
    for name in ("a", "e/z"):
        status = (upper / name).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0
    assert ((upper / "a").lstat().st_uid, (upper / "a").lstat().st_gid) == (5, 6)
    assert os.getxattr(upper / "d", "trusted.overlay.opaque") == b"y"
    with snapshots.merged() as merged:
        assert names(merged) == ["d", "d/new", "e"]


async def test_what_hid_a_lower_directory_still_hides_it_when_a_new_one_comes(
    pool: Pool, snapshots: Snapshots
) -> None:
    base = LayerTar()
    for name in ("a", "b", "c", "d"):
        base.add(f"{name}/old")
    await apply(pool, base.bytes(), snapshots.next())
    change = LayerTar().add(".wh.a").directory("a").add("a/new")
    change.add("b").directory("b").add("b/new")
    change.add(".wh.c").add("c/new")  # made without being listed
    change.add("d/new").add(".wh.d")
    await apply(pool, change.bytes(), snapshots.next())
    with snapshots.merged() as merged:
        assert names(merged) == ["a", "a/new", "b", "b/new", "c", "c/new"]


async def test_directories_not_listed_look_as_they_do_below(
    pool: Pool, snapshots: Snapshots
) -> None:
    bottom = LayerTar().directory("a", 0o700).directory("a/b", 0o1750).directory("gone", 0o711)
    bottom.directory("hidden", 0o711).directory("hidden/sub", 0o712)
    await apply(pool, bottom.bytes(), snapshots.next())
    middle = LayerTar().add("a", tarfile.DIRTYPE, mode=0o2710, uid=3, gid=4, mtime=99,
                            pax_headers={"SCHILY.xattr.user.k": "v"})  # fmt: skip
    middle.add(".wh.gone").add("hidden/.wh..wh..opq")
    await apply(pool, middle.bytes(), snapshots.next())
    top = LayerTar().add("a/b/c/file").add("gone/file").add("hidden/sub/file")
    await apply(pool, top.bytes(), snapshots.next())
    upper = read_tree(snapshots.layers[-1])
    found = {name: (oct(upper[name].mode), upper[name].uid, upper[name].xattrs)
             for name in ("a", "a/b", "a/b/c", "gone", "hidden", "hidden/sub")}  # fmt: skip
    assert found == {
        "a": ("0o2710", 3, (("user.k", b"v"),)),
        "a/b": ("0o1750", 0, ()),
        "a/b/c": ("0o755", 0, ()),
        "gone": ("0o755", 0, ()),
        "hidden": ("0o711", 0, ()),
        "hidden/sub": ("0o755", 0, ()),
    }
    assert upper["a"].mtime == 99 * 10**9


NEEDS_LOWERS = {
    "link below": LayerTar().add("lib/added", data=b"1").bytes(),
    "link in a link": LayerTar().add("way/sub/added", data=b"1").bytes(),
    "hard link": LayerTar().add("first").add("again", tarfile.LNKTYPE, link="usr/lib/file").bytes(),
    "opaque root": LayerTar().add("new").add(".wh..wh..opq").bytes(),
    "after others": LayerTar().directory("usr", 0o700).add(".wh.etc").add("usr/lib/.wh.file")
    .add("new/dir/file").add("lib/added").bytes(),
}  # fmt: skip


@pytest.mark.parametrize("case", NEEDS_LOWERS)
async def test_what_needs_its_lower_layers_gets_them(
    pool: Pool, snapshots: Snapshots, tmp_path: Path, case: str
) -> None:
    base = (
        LayerTar().directory("usr/lib").add("usr/lib/file", data=b"lib").symlink("lib", "usr/lib")
    )
    base.symlink("way", "/usr").directory("usr/sub", 0o711).add("etc/conf").bytes()
    layers = [base.bytes(), NEEDS_LOWERS[case]]
    for layer in layers:
        applied = await apply(pool, layer, snapshots.next())
        assert applied.digest == of(layer)
    flat = tmp_path / "flat"
    flat.mkdir()
    for layer in layers:
        await apply(pool, layer, [Mount("bind", str(flat), ("rbind", "rw"))])

    def timeless(tree: dict[str, Entry]) -> dict[str, Entry]:
        return {name: entry._replace(mtime=0) if entry.kind == "dir" else entry
                for name, entry in tree.items()}  # fmt: skip

    assert differences(timeless(snapshots.tree()), timeless(read_tree(flat))) == []
    assert os.listdir(tmp_path / "tmpmounts") == []


async def test_layers_without_parents_are_put_together_later(
    pool: Pool, snapshots: Snapshots
) -> None:
    layers = [LayerTar().directory("d", 0o711).add("d/a").add("b").bytes(),
              LayerTar().directory("d", 0o711).add("d/.wh.a").add("d/c").bytes(),
              LayerTar().add(".wh.b").add("e/f").bytes()]  # fmt: skip
    mounts = [snapshots.next(rebase=True) for _ in layers]
    await asyncio.gather(*(apply(pool, *pair) for pair in zip(layers, mounts, strict=True)))
    with snapshots.merged() as merged:
        assert names(merged) == ["d", "d/c", "e", "e/f"]


async def test_an_upper_directory_in_use_is_only_added_to(pool: Pool, snapshots: Snapshots) -> None:
    await apply(pool, LayerTar().add("a").add("d/x").symlink("l", "d").bytes(), snapshots.next())
    mounts = snapshots.next()
    (snapshots.layers[-1] / "mine").write_text("kept")
    await apply(pool, LayerTar().add("l/new").add(".wh.a").bytes(), mounts)
    with snapshots.merged() as merged:
        assert names(merged) == ["d", "d/new", "d/x", "l", "mine"]


@pytest.mark.parametrize("kind", ["tmpfs", "nested", "read-only"])
async def test_other_mounts(pool: Pool, tmp_path: Path, kind: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "below").mkdir()
    one = Mount("bind", str(tmp_path / "one"), ("rbind", "rw"))
    layer = LayerTar().add("below/file", data=b"x").bytes()
    if kind == "tmpfs":
        applied = await apply(pool, layer, [Mount("tmpfs", "tmpfs")])
        assert applied.size == len(layer)
    elif kind == "nested":
        two = Mount("bind", str(tmp_path / "two"), ("rbind", "rw"), "below")
        await apply(pool, layer, [one, two])
        assert (tmp_path / "two" / "file").read_bytes() == b"x"
        assert names(tmp_path / "one") == ["below"]
    else:
        with pytest.raises(errors.Error, match="read-only file system"):
            await apply(pool, layer, [Mount("bind", one.source, ("rbind", "ro"))])
    assert os.listdir(tmp_path / "tmpmounts") == []


async def test_nothing_mounted_at_the_root(pool: Pool, tmp_path: Path) -> None:
    layer = LayerTar().add("sub/file").bytes()
    for mounts in ([], [Mount("bind", str(tmp_path), ("rbind", "rw"), "sub")]):
        with pytest.raises(errors.InvalidArgument, match="no mount"):
            await apply(pool, layer, mounts)
    assert os.listdir(tmp_path / "tmpmounts") == []


@pytest.mark.parametrize(
    ("media_type", "packed"),
    [
        (OCI_LAYER, False),
        (OCI_LAYER + "+gzip", True),
        (OCI_LAYER + "+zstd", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.docker.image.rootfs.diff.tar", True),
        ("application/vnd.docker.image.rootfs.diff.tar", False),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", False),
    ],
)
async def test_media_types(pool: Pool, snapshots: Snapshots, media_type: str, packed: bool) -> None:
    layer = LayerTar().add("file", data=b"content").bytes()
    blob = gzip.compress(layer) if packed else layer
    applied = await apply(pool, blob, snapshots.next(), media_type)
    assert (applied.media_type, applied.digest) == (OCI_LAYER, of(layer))
    assert (snapshots.layers[0] / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    "media_type", [OCI_LAYER + "+gzip+encrypted", "application/json", "", OCI_LAYER + ".gzip"]
)
async def test_unknown_media_types(pool: Pool, snapshots: Snapshots, media_type: str) -> None:
    with pytest.raises(errors.NotFound, match="no processor for media-type"):
        await apply(pool, b"", snapshots.next(), media_type)


async def test_bad_layers(pool: Pool, snapshots: Snapshots) -> None:
    mounts = snapshots.next()
    for blob, text in (
        (b"garbage" * 100, "archive/tar: invalid tar header"),
        (gzip.compress(LayerTar().add("x", data=b"y" * 5000).bytes())[:-20], "unexpected EOF"),
        (LayerTar().add("x", b"V").bytes(), "unhandled tar header type 86"),
        (LayerTar().add("x", tarfile.LNKTYPE, link="y").bytes(), "y: no such file or directory"),
    ):
        with pytest.raises(errors.Error, match=text) as failure:
            await apply(pool, blob, mounts, OCI_LAYER + "+gzip")
        assert type(failure.value) is errors.Error


@pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci")
async def test_layers_of_umoci(pool: Pool, snapshots: Snapshots, tmp_path: Path) -> None:
    """umoci packs a file tree; we unpack it to the same tree."""
    import json

    def umoci(*words: str) -> None:
        subprocess.run(["umoci", *words], check=True, capture_output=True, cwd=tmp_path)

    umoci("init", "--layout", "image")
    umoci("new", "--image", "image:tag")
    umoci("unpack", "--image", "image:tag", "bundle")
    rootfs = tmp_path / "bundle" / "rootfs"
    (rootfs / "d").mkdir(mode=0o2775)
    (rootfs / "d" / "capable").write_bytes(b"x" * 10_000)
    os.chown(rootfs / "d" / "capable", 1000, 2000)
    os.setxattr(rootfs / "d" / "capable", "user.note", b"\xff\0\n")
    os.link(rootfs / "d" / "capable", rootfs / "again")
    (rootfs / ("n" * 200)).symlink_to("t" * 300)
    os.mknod(rootfs / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(rootfs / "pipe")
    (rootfs / "doomed").mkdir()
    (rootfs / "doomed" / "x").touch()
    whole_seconds(rootfs)
    umoci("repack", "--image", "image:tag", "--refresh-bundle", "bundle")
    shutil.rmtree(rootfs / "doomed")
    (rootfs / "d" / "late").touch()
    whole_seconds(rootfs)
    umoci("repack", "--image", "image:tag", "--refresh-bundle", "bundle")

    blobs = tmp_path / "image" / "blobs" / "sha256"
    index = json.loads((tmp_path / "image" / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    assert len(manifest["layers"]) == 2
    for layer in manifest["layers"]:
        blob = (blobs / layer["digest"][7:]).read_bytes()
        await apply(pool, blob, snapshots.next(), layer["mediaType"])
    found, wanted = snapshots.tree(), read_tree(rootfs)
    del found["."], wanted["."]
    assert differences(found, wanted) == []


def whole_seconds(top: Path) -> None:
    """umoci rounds times."""
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)


async def test_usage_and_removal_jobs(pool: Pool, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "d").mkdir(parents=True)
    (top / "d" / "file").write_bytes(b"x" * 10_000)
    size = sum(os.lstat(path).st_blocks * 512 for path in (top, top / "d", top / "d" / "file"))
    assert await pool.run("usage", {"path": str(top)}) == [size, 3]
    await pool.run("remove_tree", {"path": str(top)})
    await pool.run("remove_tree", {"path": str(top)})
    assert not top.exists()


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
async def test_removal_stops_at_mounts(pool: Pool, tmp_path: Path, kind: str) -> None:
    top, other = tmp_path / "tree", tmp_path / "other"
    (top / "mounted").mkdir(parents=True)
    other.mkdir()
    (other / "kept").touch()
    words = ["--bind", str(other)] if kind == "bind" else ["-t", "tmpfs", "tmpfs"]
    await asyncio.to_thread(mount, *words, str(top / "mounted"))
    try:
        (top / "mounted" / "kept").touch()
        with pytest.raises(errors.Error, match="mounted: device or resource busy"):
            await pool.run("remove_tree", {"path": str(top)}, anywhere=True)
        assert (top / "mounted" / "kept").exists()
    finally:
        await asyncio.to_thread(unmount, str(top / "mounted"))
    await pool.run("remove_tree", {"path": str(top)}, anywhere=True)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def unmount(target: str) -> None:
    subprocess.run(["umount", target], check=True)


async def test_a_worker_keeps_no_mount_alive(pool: Pool, tmp_path: Path) -> None:
    for name in ("container", "deep/er", "data"):
        (tmp_path / name).mkdir(parents=True)
    below = (tmp_path / "deep/er", tmp_path / "data")
    for target in below:
        await asyncio.to_thread(mount, "-t", "tmpfs", "tmpfs", str(target))
    try:
        (tmp_path / "data" / "file").touch()
        # What is mounted right below the root is one of the product's own places.
        assert (await pool.run("usage", {"path": str(tmp_path / "data")}))[1] == 2
        (worker,) = pool._idle
        seen = Path(f"/proc/{pid_of(worker)}/mountinfo").read_text()
        assert str(tmp_path / "data") in seen
        assert str(tmp_path / "deep") not in seen
        assert len(seen.splitlines()) <= 5
    finally:
        for target in below:
            await asyncio.to_thread(unmount, str(target))


def pid_of(worker: Any) -> int:
    facts = Path(f"/proc/self/fdinfo/{worker._pidfd}").read_text()
    return int(facts.split("Pid:\t")[1].split()[0])


async def test_layers_for_places_elsewhere(pool: Pool, tmp_path_factory: Any) -> None:
    """Another plugin's directories may lie anywhere, on file systems of their own."""
    place = tmp_path_factory.mktemp("elsewhere")
    await asyncio.to_thread(mount, "-t", "tmpfs", "tmpfs", str(place))
    try:
        target = [Mount("bind", str(place), ("rbind", "rw"))]
        await apply(pool, LayerTar().add("file").bytes(), target)
        assert names(place) == ["file"]
    finally:
        await asyncio.to_thread(unmount, str(place))


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def test_a_worker_is_confined(pool: Pool) -> None:
    await pool.run("usage", {"path": "/proc/self/fd"})
    (worker,) = pool._idle
    pid = pid_of(worker)
    facts = status(pid)
    allowed = sum(1 << cap for cap in (0, 1, 3, 4, 21, 27, 31))
    for field in ("CapEff", "CapPrm", "CapBnd"):
        assert int(facts[field], 16) & ~allowed == 0
        assert int(facts[field], 16) & 1
    assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert facts["Name"].startswith("cradled-worker")
    for kind in ("mnt", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    propagation = Path(f"/proc/{pid}/mountinfo").read_text()
    assert "shared:" not in propagation


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing but the directory tells
        await asyncio.sleep(0)


async def test_killing_a_worker_at_any_time(pool: Pool, snapshots: Snapshots) -> None:
    """Cancelled after more and more steps: nothing is written once the call has returned."""
    layer = LayerTar()
    for number in range(3000):
        layer.add(f"{number % 50}/{number}", data=b"x" * 2000)
    data = layer.bytes()
    for step in range(6):
        mounts = snapshots.next(rebase=True)
        task = asyncio.create_task(apply(pool, data, mounts))
        upper = snapshots.layers[-1]
        await until(lambda: len(os.listdir(upper)) >= step * 9 or task.done())  # noqa: B023
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        written = names(upper)
        await asyncio.sleep(0.02)
        assert names(upper) == written
    assert (await apply(pool, data, snapshots.next(rebase=True))).size == len(data)
