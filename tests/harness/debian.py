"""A real Debian image, made here once and kept in ``.cache``: several layers, whiteouts, opaque
directories, more than 40,000 files, hard links, set-id programs and file capabilities.

    python -m harness.debian      (in ``tests``) builds it by hand
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

from harness.images import TestImage

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "debian"
NAME = "docker.io/library/debian:test"
XATTRS = ("security.capability", "user.test")

# Each step is a shell script that runs in the tree of the steps before it.
APT_INSTALL = (
    "DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends {} >/dev/null"
)
STEPS = (
    "apt-get -q update && "
    + APT_INSTALL.format("python3 python3-dev gcc make git vim tzdata libcap2-bin attr"),
    APT_INSTALL.format("linux-headers-amd64 golang-src") + " && apt-get clean",
    # Changes over lower layers: deletions, a directory made anew (opaque), changed attributes,
    # a directory that becomes a file and the other way round, links to files below.
    """
    rm -rf /usr/share/doc /var/cache/apt/archives
    mkdir -p /usr/share/doc/new /var/cache/apt/archives/partial
    echo hello > /usr/share/doc/new/hello
    rm -f /usr/bin/vim.basic
    chmod 4711 /bin/su
    chown 33:33 /usr/share/misc
    cp /bin/true /bin/capable
    setcap cap_net_bind_service+ep /bin/capable
    rm -rf /usr/share/vim
    echo file > /usr/share/vim
    rm -f /etc/issue
    mkdir /etc/issue
    setfattr -n user.test -v value /etc/issue
    ln /bin/bash /bin/bash-again
    mkfifo /srv/pipe
    mknod /dev/some c 1 3
    """,
)


def image(compression: str = "gzip") -> Path:
    """Path of the image as an OCI layout tar; builds what is not there yet."""
    path = CACHE / f"image-{compression}-{fingerprint()}.tar"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        build(path, compression)
    return path


def fingerprint() -> str:
    """Changes when what is built changes."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def build(path: Path, compression: str) -> None:
    work = CACHE / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    layers = [bootstrap(work)]
    for number, step in enumerate(STEPS, 1):
        layers.append(run_step(work, layers, number, step))
    tars = [layer_tar(layer) for layer in layers]
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compression]
    config: dict[str, object] = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]}
    made = TestImage(NAME, tars, config, compress=COMPRESSORS[compression], suffix=suffix)
    temporary = path.with_suffix(".new")
    made.write_oci_layout(temporary)
    temporary.rename(path)
    shutil.rmtree(work)


def compress_zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return bytes(zstd.compress(data, 3))


def compress_gzip(data: bytes) -> bytes:
    import zlib

    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


COMPRESSORS = {"gzip": compress_gzip, "zstd": compress_zstd, "none": bytes}


def bootstrap(work: Path) -> Path:
    """The bottom layer: a minimal Debian of the release we run on."""
    base = work / "base"
    suite = next(
        line.split("=")[1].strip('"')
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(base)], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return base


def run_step(work: Path, lower: list[Path], number: int, script: str) -> Path:
    """Run a script on an overlay of the layers so far; its upper directory is the next layer."""
    upper, scratch, merged = (work / f"{kind}{number}" for kind in ("upper", "scratch", "merged"))
    for directory in (upper, scratch, merged):
        directory.mkdir()
    lowers = ":".join(str(layer) for layer in reversed(lower))
    options = f"lowerdir={lowers},upperdir={upper},workdir={scratch},index=off"
    setup = (
        f"set -e; mount -t overlay overlay -o {options} {merged};"
        f"cp /etc/resolv.conf {merged}/run/; mount -t proc proc {merged}/proc;"
        f'chroot {merged} /bin/sh -ec "$STEP"; rm -f {merged}/run/resolv.conf'
    )
    env = {**os.environ, "STEP": script, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(["unshare", "-m", "sh", "-c", setup], check=True, env=env)
    return upper


def layer_tar(upper: Path) -> bytes:
    """A directory, or the upper directory of an overlay, as a layer tar."""
    out = upper.with_suffix(".tar")
    inodes: dict[tuple[int, int], str] = {}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for current, directories, files in os.walk(upper):
            directories.sort()
            for name in sorted([*directories, *files]):
                add_entry(tar, Path(current, name), upper, inodes)
    data = out.read_bytes()
    out.unlink()
    return data


def add_entry(
    tar: tarfile.TarFile, path: Path, top: Path, inodes: dict[tuple[int, int], str]
) -> None:
    name = str(path.relative_to(top))
    status = path.lstat()
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        whiteout = tarfile.TarInfo(str(Path(name).parent / (".wh." + path.name)))
        tar.addfile(whiteout)
        return
    if stat.S_ISSOCK(status.st_mode):
        return
    info = tar.gettarinfo(str(path), name)
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        first = inodes.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
    tar.inodes.clear()  # type: ignore[attr-defined]
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs(path).items()}
    if info.isreg():
        with open(path, "rb") as data:
            tar.addfile(info, data)
        return
    tar.addfile(info)
    if info.isdir() and read_xattr(path, "trusted.overlay.opaque") == b"y":
        tar.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))


def xattrs(path: Path) -> dict[str, str]:
    """Extended attributes as PAX text; binary values travel as surrogates."""
    values = {key: read_xattr(path, key) for key in XATTRS}
    return {key: value.decode("utf-8", "surrogateescape") for key, value in values.items() if value}


def read_xattr(path: Path, key: str) -> bytes:
    try:
        return os.getxattr(path, key, follow_symlinks=False)
    except OSError:
        return b""


if __name__ == "__main__":
    print(image())
