"""Reading files of a root file system by its mounts, against what overlayfs itself would show."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.client.rootfs import read_text
from cradled.core.mount import Mount
from cradled.errors import InvalidArgument, Unimplemented

ROOT = os.geteuid() == 0


def overlay(*layers: Path, upper: Path | None = None) -> list[Mount]:
    """Mounts of layers, uppermost first."""
    options = [f"upperdir={upper}", "workdir=/nowhere"] if upper else []
    return [Mount("overlay", "overlay", (*options, "lowerdir=" + ":".join(map(str, layers))))]


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("top", "middle", "bottom")]
    for layer in made:
        (layer / "etc").mkdir(parents=True)
    return made


def test_bind(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0")
    assert read_text([Mount("bind", str(tmp_path))], "/etc/passwd") == "root:x:0:0"
    assert read_text([Mount("bind", str(tmp_path))], "/etc/group") == ""
    assert read_text([Mount("bind", str(tmp_path))], "/no/such") == ""
    assert read_text([Mount("bind", str(tmp_path))], "/etc/passwd/x") == ""


def test_upper_layers_hide_lower_ones(layers: list[Path]) -> None:
    top, middle, bottom = layers
    (bottom / "etc/passwd").write_text("bottom")
    assert read_text(overlay(*layers), "/etc/passwd") == "bottom"
    (middle / "etc/passwd").write_text("middle")
    assert read_text(overlay(*layers), "/etc/passwd") == "middle"
    assert read_text(overlay(middle, bottom, upper=top), "/etc/passwd") == "middle"
    (top / "etc/passwd").write_text("top")
    assert read_text(overlay(middle, bottom, upper=top), "/etc/passwd") == "top"


def test_a_file_hides_a_directory_below(layers: list[Path]) -> None:
    top, _, bottom = layers
    (bottom / "etc/passwd").write_text("bottom")
    (top / "etc").rmdir()
    (top / "etc").write_text("no directory")
    assert read_text(overlay(*layers), "/etc/passwd") == ""


def test_links_stay_inside_the_layers(layers: list[Path], tmp_path: Path) -> None:
    top, middle, bottom = layers
    (bottom / "usr/lib").mkdir(parents=True)
    (middle / "usr").mkdir()
    (bottom / "usr/lib/passwd").write_text("inside")
    (top / "etc/passwd").symlink_to("../usr/./lib//passwd")
    assert read_text(overlay(*layers), "/etc/passwd") == "inside"
    (middle / "etc/group").symlink_to("/usr/lib/passwd")
    assert read_text(overlay(*layers), "/etc/group") == "inside"
    (top / "lib").symlink_to("usr/lib")
    assert read_text(overlay(*layers), "/lib/passwd") == "inside"
    outside = tmp_path / "secret"
    outside.write_text("outside")
    for name, target in (("a", "../../../../secret"), ("b", str(outside))):
        (top / "etc" / name).symlink_to(target)
        assert read_text(overlay(*layers), f"/etc/{name}") == ""


def test_links_in_a_circle(layers: list[Path]) -> None:
    (layers[0] / "etc/passwd").symlink_to("passwd")
    with pytest.raises(OSError, match="symbolic links"):
        read_text(overlay(*layers), "/etc/passwd")


def test_odd_files(layers: list[Path]) -> None:
    os.mkfifo(layers[0] / "etc/passwd")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        read_text(overlay(*layers), "/etc/passwd")
    (layers[0] / "etc/group").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(InvalidArgument, match="at most 1 MiB"):
        read_text(overlay(*layers), "/etc/group")
    (layers[0] / "etc/directory").mkdir()
    assert read_text(overlay(*layers), "/etc/directory") == ""
    (layers[0] / "etc/latin").write_bytes(b"m\xfcller:x:5:5")
    assert read_text(overlay(*layers), "/etc/latin").endswith(":x:5:5")


def test_layers_with_a_colon_in_their_name(tmp_path: Path) -> None:
    layer = tmp_path / "a:b"
    layer.mkdir()
    (layer / "passwd").write_text("x")
    mount = Mount("overlay", "overlay", (f"lowerdir={str(layer).replace(':', chr(92) + ':')}:/no",))
    assert read_text([mount], "/passwd") == "x"


@pytest.mark.parametrize(
    "mounts", [[], [Mount("ext4", "/dev/x", ("loop",))], [Mount("bind", "/")] * 2]
)
def test_mounts_that_are_no_directories(mounts: list[Mount]) -> None:
    with pytest.raises(Unimplemented):
        read_text(mounts, "/etc/passwd")


@pytest.mark.skipif(not ROOT, reason="makes whiteouts and mounts")
class TestAgainstTheKernel:
    """The same tree through overlayfs, in a mount namespace of its own."""

    @pytest.fixture
    def disk(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
            yield Path(directory)

    def seen_by_overlayfs(self, directory: Path, layers: list[Path], path: str) -> str:
        target = directory / "target"
        target.mkdir(exist_ok=True)
        lower = ":".join(map(str, layers))
        script = f"mount -t overlay overlay -o lowerdir={lower} {target} && cat {target}{path}"
        command = ["unshare", "--mount", "sh", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def test_whiteouts_and_opaque_directories(self, disk: Path) -> None:
        layers = [disk / name for name in ("top", "middle", "bottom")]
        for layer in layers:
            for name in ("deleted", "opaque", "plain", "replaced"):
                (layer / name).mkdir(parents=True)
        top, middle, bottom = layers
        for name in ("deleted", "opaque", "plain", "replaced"):
            (bottom / name / "file").write_text("bottom")
        os.mknod(middle / "deleted/file", 0o600 | 0o020000, 0)
        os.setxattr(middle / "opaque", "trusted.overlay.opaque", b"y")
        (middle / "replaced/file").mkdir()
        (top / "opaque/other").write_text("top")
        for path in ("deleted/file", "opaque/file", "opaque/other", "plain/file", "replaced/file"):
            expected = self.seen_by_overlayfs(disk, layers, f"/{path}")
            assert read_text(overlay(*layers), path) == expected, path
        assert self.seen_by_overlayfs(disk, layers, "/plain/file") == "bottom"
