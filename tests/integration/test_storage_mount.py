"""linux.mount on the real kernel."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.linux import mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mount.unmount_below(str(tmp_path), detach=True)
    assert not [m for m in mount.mounts() if m.target.startswith(str(tmp_path))]


def made(place: Path, *names: str) -> list[Path]:
    paths = [place / name for name in names]
    for path in paths:
        path.mkdir(parents=True)
    return paths


def test_bind_read_only(place: Path) -> None:
    source, target = made(place, "source", "target")
    (source / "file").write_text("x")
    mount.mount("bind", str(source), ["rbind", "ro"], str(target))
    assert (target / "file").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    (source / "new").write_text("")


def test_bind_keeps_what_the_source_forbids(place: Path) -> None:
    source, target = made(place, "source", "target")
    mount.mount("tmpfs", "tmpfs", ["nosuid", "noexec", "size=1m"], str(source))
    mount.mount("bind", str(source), ["bind", "ro"], str(target))
    flags = os.statvfs(target).f_flag
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NOEXEC
    assert flags & os.ST_RDONLY


def test_propagation(place: Path) -> None:
    (target,) = made(place, "target")
    mount.mount("tmpfs", "tmpfs", ["rprivate"], str(target))
    assert mount.is_mounted(str(target))
    text = Path("/proc/self/mountinfo").read_text()
    line = next(line for line in text.splitlines() if line.split(" ")[4] == str(target))
    assert line.split(" ")[6] == "-"


def layers(place: Path, count: int, prefix: str = "") -> list[Path]:
    lowers = made(place, *(f"{prefix}{number}/fs" for number in range(count)))
    for number, lower in enumerate(lowers):
        (lower / f"file{number}").write_text(str(number))
        (lower / "top").write_text(str(number))
    return lowers


@pytest.mark.parametrize("prefix", ["", "long" * 20 + "/" + "name" * 60 + "/"])
def test_overlay_of_many_layers(place: Path, prefix: str) -> None:
    lowers = layers(place, 90, prefix)
    upper, work, target = made(place, "upper", "work", "target")
    words = [f"workdir={work}", f"upperdir={upper}", "lowerdir=" + ":".join(map(str, lowers))]
    mount.mount("overlay", "overlay", [*words, "index=off", "nosuid"], str(target))
    assert (target / "file89").read_text() == "89"
    assert (target / "top").read_text() == "0"
    (target / "new").write_text("n")
    assert (upper / "new").read_text() == "n"
    assert os.statvfs(target).f_flag & os.ST_NOSUID


def test_overlay_of_many_layers_without_the_new_calls(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_args: object) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(mount, "_mount_by_layers", missing)
    lowers = layers(place, 90, "a:b/")
    (target,) = made(place, "target")
    names = ":".join(str(lower).replace(":", "\\:") for lower in lowers)
    mount.mount("overlay", "overlay", ["lowerdir=" + names], str(target))
    assert (target / "file89").read_text() == "89"


def test_a_bad_layer_is_named(place: Path) -> None:
    lowers = [*layers(place, 90), place / "absent"]
    (target,) = made(place, "target")
    with pytest.raises(FileNotFoundError):
        mount.mount("overlay", "overlay", ["lowerdir=" + ":".join(map(str, lowers))], str(target))


def test_mount_all_undoes_its_beginning(place: Path) -> None:
    source, target = made(place, "source/below", "target")
    plans = [
        ("bind", str(source.parent), ["rbind"], ""),
        ("tmpfs", "tmpfs", [], "below"),
        ("nosuchfs", "x", [], ""),
    ]
    with pytest.raises(OSError, match="No such device"):
        mount.mount_all(plans, str(target))
    assert not mount.is_mounted(str(target))
    mount.mount_all(plans[:2], str(target))
    assert [m.target for m in mount.mounts()][-2:] == [str(target), f"{target}/below"]


def test_a_sub_target_stays_below_the_root(place: Path) -> None:
    root, outside = made(place, "root", "outside")
    (root / "link").symlink_to(outside)
    (root / "up").symlink_to("../../..")
    assert mount.inside(str(root), "up") == str(root)
    with pytest.raises(FileNotFoundError):
        mount.inside(str(root), "link")


def test_unmount_all_peels_every_mount(place: Path) -> None:
    (target,) = made(place, "target")
    for _ in range(3):
        mount.mount("tmpfs", "tmpfs", [], str(target))
    mount.unmount_all(str(target))
    assert not mount.is_mounted(str(target))
    mount.unmount_all(str(place / "absent"))
    with pytest.raises(OSError, match="Invalid argument"):
        mount.unmount(str(target))


@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices")
@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4")
def test_loop(place: Path) -> None:
    image, (target,) = place / "image", made(place, "target")
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mount.mount("ext4", str(image), ["loop"], str(target))
    (target / "file").write_text("kept")
    mount.unmount(str(target))
    mount.mount("ext4", str(image), ["loop", "ro"], str(target))
    assert (target / "file").read_text() == "kept"
    assert os.statvfs(target).f_flag & os.ST_RDONLY
