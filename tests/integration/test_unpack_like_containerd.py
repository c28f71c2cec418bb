"""The same awkward layers unpacked by Debian's containerd and by us, compared to the attribute."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.images import LayerTar, TestImage, sha256
from harness.trees import Entry, differences, read_tree

from cradled.core.mount import Mount
from cradled.core.values import Descriptor
from cradled.differs.apply import WalkingApplier
from cradled.digest import chain_ids
from cradled.workers.pool import Pool
from cradled.zygote.client import Zygote

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_containerd = pytest.mark.skipif(
    not (shutil.which("containerd") and shutil.which("ctr")), reason="needs containerd and ctr"
)
pytestmark = [needs_root, needs_containerd]

NAME = "docker.io/library/awkward:test"
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def pax_xattrs(**values: bytes) -> dict[str, str]:
    return {
        "SCHILY.xattr." + key.replace("__", "."): value.decode("utf-8", "surrogateescape")
        for key, value in values.items()
    }


def base_layer() -> bytes:
    layer = LayerTar()
    for name in ("bin", "etc", "usr", "usr/bin", "usr/lib", "var", "opaque", "opaque/sub",
                 "gone", "gone/deep", "swap-dir", "keep"):  # fmt: skip
        layer.directory(name)
    layer.directory("tmp", 0o1777).directory("setgid", 0o2775)
    layer.add("keep", tarfile.DIRTYPE, mode=0o710, uid=12, gid=34, mtime=1_600_000_000)
    for name in ("opaque/a", "opaque/sub/b", "gone/x", "gone/deep/y", "swap-dir/z", "keep/k"):
        layer.add(name, data=name.encode())
    layer.add("swap-file", data=b"a file").add("usr/bin/tool", data=b"tool", mode=0o755)
    layer.symlink("lib", "usr/lib").symlink("absolute", "/usr/lib").symlink("dangling", "/no/where")
    layer.add("lib/through-link", data=b"1").add("absolute/through-absolute", data=b"2")
    layer.add("usr/../etc/dotted", data=b"3").add("./etc/./plain", data=b"4")
    layer.add("/etc/rooted", data=b"5").add("../../etc/escaping", data=b"6")
    layer.add("implied/parent/file", data=b"7")
    layer.add("setuid", data=b"x", mode=0o4755, uid=1000, gid=1000)
    layer.add("setgid/inside", data=b"y", mode=0o2755, gid=7).add("sticky", data=b"", mode=0o1644)
    layer.add("big-ids", data=b"", uid=4_000_000_000, gid=3_000_000_000)
    layer.add("hard", tarfile.LNKTYPE, link="usr/bin/tool", mode=0o755)
    layer.add("hard-rooted", tarfile.LNKTYPE, link="/usr/bin/tool", mode=0o755)
    layer.add("hard-by-link", tarfile.LNKTYPE, link="lib/through-link", mode=0o600, uid=5)
    layer.symlink("pointer", "usr/bin/tool").add("hard-to-link", tarfile.LNKTYPE, link="pointer")
    layer.add("null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3, gid=6)
    layer.add("disk", tarfile.BLKTYPE, mode=0o660, devmajor=259, devminor=300)
    layer.add("pipe", tarfile.FIFOTYPE, mode=0o622, uid=9)
    layer.add("x" * 200 + "/" + "y" * 200, data=b"long")
    layer.symlink("long-link", "/".join(["z" * 90] * 5))
    layer.add("fraction", mtime=1_234_567_890.123456789)
    layer.add(
        "pax-fraction", pax_headers={"mtime": "1234567890.123456789", "atime": "1334567890.5"}
    )
    layer.add("before-epoch", pax_headers={"mtime": "-5.25"})
    layer.add("far-future", pax_headers={"mtime": "99999999999"})
    xattrs = pax_xattrs(
        security__capability=CAPABILITY, user__note=b"value\xff", trusted__secret=b"no"
    )
    layer.add("capable", data=b"c", mode=0o755, pax_headers=xattrs)
    layer.add("keep/attributed", tarfile.DIRTYPE, mode=0o755,
              pax_headers=pax_xattrs(user__dir=b"d"))  # fmt: skip
    layer.add("tagged-link", tarfile.SYMTYPE, link="bin", pax_headers=pax_xattrs(user__no=b"n"))
    layer.add("same", data=b"first").add("same", data=b"second!", mode=0o600)
    layer.add("becomes-dir", data=b"f").directory("becomes-dir").add("becomes-dir/in", data=b"i")
    layer.directory("becomes-file").add("becomes-file/in", data=b"i").add("becomes-file", data=b"f")
    layer.add("name with \x01 odd \udcff bytes", data=b"")
    return layer.bytes()


def change_layer() -> bytes:
    layer = LayerTar()
    layer.add(".wh.gone").add("opaque/new", data=b"n").add("opaque/.wh..wh..opq")
    layer.add("opaque/sub/late", data=b"l")
    layer.add("swap-dir", data=b"now a file").directory("swap-file")
    layer.add("swap-file/inside", data=b"in")
    layer.add("keep/implied", data=b"keep is not listed here")
    layer.add("usr/bin/.wh.tool", uid=0)
    layer.add("etc/.wh.not-there")
    layer.symlink("bin", "usr/bin")
    layer.directory("setgid", 0o755)
    layer.add("pipe", data=b"no pipe any more")
    layer.add("capable", data=b"lost", mode=0o755)
    return layer.bytes()


def gnu_layer(tmp: Path) -> bytes:
    """What GNU tar makes of sparse files and long names, in its own format."""
    source = tmp / "gnu"
    (source / ("d" * 120)).mkdir(parents=True)
    with open(source / ("d" * 120) / "sparse", "wb") as file:
        for offset in range(0, 40 << 20, 1 << 20):
            file.seek(offset)
            file.write(os.urandom(4096))
        file.truncate(64 << 20)
    (source / ("l" * 150)).symlink_to("t" * 170)
    for pattern in (source, *sorted(source.rglob("*"))):
        os.utime(pattern, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    return subprocess.run(
        ["tar", "--format=pax", "--sparse", "--sparse-version=1.0", "-C", str(source), "-cf", "-",
         "."], check=True, capture_output=True).stdout  # fmt: skip


class Containerd:
    """Debian's containerd, started for one test."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "c.sock"
        config = directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self.socket}"\n'
        )
        self._log = open(directory / "log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            ["containerd", "-c", str(config)], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ctr(self, *words: str) -> str:
        command = ["ctr", "-a", str(self.socket), "-n", "test", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    daemon = Containerd(tmp_path)
    yield daemon
    daemon.close()


def mounted(mounts: list[Mount], target: Path) -> dict[str, Entry]:
    """The tree that mounts show, read-only."""
    target.mkdir()
    kind, words = mounts[0].type, [*mounts[0].options, "ro"]
    words = [word for word in words if not word.startswith(("upperdir=", "workdir="))]
    words = [word for word in words if word != "rw"]
    command = ["mount", "-t", kind, "-o", ",".join(words), mounts[0].source, str(target)]
    subprocess.run(command, check=True)
    try:
        return read_tree(target)
    finally:
        subprocess.run(["umount", str(target)], check=True)


def theirs(daemon: Containerd, image: TestImage, tmp: Path) -> dict[str, Entry]:
    archive = image.write_oci_layout(tmp / "image.tar")
    daemon.ctr("images", "import", "--all-platforms", str(archive))
    top = chain_ids(sha256(layer) for layer in image.layers)[-1]
    # A view of layers names only their directories, which the image keeps from being collected.
    words = daemon.ctr("snapshots", "view", "--target", "/nowhere", "view", top).split()
    kind, source, options = words[2], words[3], words[6]
    return mounted([Mount(kind, source, tuple(options.split(",")))], tmp / "theirs")


class Blob:
    """A layer in a file."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        self.size = path.stat().st_size

    def fileno(self) -> int:
        return self._file.fileno()

    async def read(self, offset: int, length: int, /) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        self._file.close()


async def ours(image: TestImage, tmp: Path, *, mounted_always: bool = False) -> dict[str, Entry]:
    zygote = Zygote()
    pool = Pool(zygote, str(tmp))
    applier = WalkingApplier(pool)
    done: list[str] = []
    try:
        for number, layer in enumerate(image.layers):
            directory = tmp / f"snapshot{number}"
            for name in ("fs", "work"):
                (directory / name).mkdir(parents=True)
            (directory / "fs").chmod(0o755)
            upper = str(directory / "fs")
            if done:
                words = (f"workdir={directory}/work", f"upperdir={upper}",
                         "lowerdir=" + ":".join(reversed(done)), "index=off")  # fmt: skip
                mounts = [Mount("overlay", "overlay", words)]
            else:
                mounts = [Mount("bind", upper, ("rw", "rbind"))]
            if mounted_always:
                scratch = tmp / "scratch"
                scratch.mkdir(exist_ok=True)
                mounts.insert(0, Mount("bind", str(scratch), ("rbind", "rw")))
            blob_path = tmp / f"blob{number}"
            blob_path.write_bytes(image.compress(layer))
            blob = Blob(blob_path)
            try:
                applied = await applier.apply(
                    Descriptor(LAYER, "", blob.size), blob, mounts, sync_fs=number == 0
                )
            finally:
                blob.close()
            assert applied.digest == sha256(layer)
            assert applied.size == len(layer)
            done.append(upper)
    finally:
        await pool.aclose()
        await zygote.aclose()
    if len(done) == 1:
        return mounted([Mount("bind", done[0], ("rbind",))], tmp / "ours")
    lowers = ("lowerdir=" + ":".join(reversed(done)), "index=off")
    return mounted([Mount("overlay", "overlay", lowers)], tmp / "ours")


def without_now(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Directories that no layer lists have the time of their making."""
    return {
        path: entry._replace(mtime=0) if path in NOT_LISTED else entry
        for path, entry in tree.items()
    }


# The last five are listed by the first layer only: there we keep the time, containerd does not.
NOT_LISTED = (
    ".", "implied", "implied/parent", "x" * 200, "opaque/sub",
    "keep", "usr", "usr/bin", "opaque", "etc",
)  # fmt: skip


@pytest.mark.parametrize("mounted_always", [False, True])
async def test_awkward_layers_come_out_as_containerd_unpacks_them(
    containerd: Containerd, tmp_path: Path, mounted_always: bool
) -> None:
    image = TestImage(NAME, [base_layer(), change_layer(), gnu_layer(tmp_path)])
    expected = theirs(containerd, image, tmp_path)
    found = await ours(image, tmp_path, mounted_always=mounted_always)
    assert differences(without_now(found), without_now(expected)) == []
    assert len(found) > 60
    times = {path: found[path].mtime for path in ("keep", "usr")}
    if not mounted_always:
        assert times == {"keep": 1_600_000_000 * 10**9, "usr": 1_700_000_000 * 10**9}
