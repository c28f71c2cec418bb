"""Archives that try to get out: nothing beside the target changes, whatever they say."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cradled.archive.apply import Unpacker, apply
from cradled.archive.decompress import LayerStream
from cradled.archive.errors import ArchiveError
from cradled.archive.overlay import LowersNeeded, OverlayUnpacker

UID, GID = os.getuid(), os.getgid()
SECRET = b"secret of the host"

Entry = tuple[str, bytes, str]
FILE, DIR, SYM, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CHAR, FIFO = tarfile.CHRTYPE, tarfile.FIFOTYPE
EVERY_KIND = (FILE, DIR, SYM, HARD, FIFO)


def archive(entries: list[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.mtime = kind, link, 0o6777, 123
            info.uid, info.gid = UID, GID
            info.pax_headers = {"SCHILY.xattr.user.evil": "1"}
            data = b"evil" if kind == FILE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def fingerprint(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        content = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        xattrs = os.listxattr(path, follow_symlinks=False)
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_nlink,
                            status.st_size, status.st_mtime_ns, status.st_ctime_ns, content,
                            tuple(xattrs))  # fmt: skip
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A target between things that must stay as they are."""
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "file").write_bytes(SECRET)
    (outside / "dir" / "inner").write_bytes(SECRET)
    (outside / "link").symlink_to("file")
    target = tmp_path / "target"
    target.mkdir()
    before = fingerprint(outside)
    yield target
    assert fingerprint(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["outside", "target"]


Rules = Callable[[str], Unpacker]
BOTH = pytest.mark.parametrize("rules", [Unpacker, OverlayUnpacker])


def attack(entries: list[Entry], target: Path, rules: Rules) -> None:
    """Unpack; an error is as good a defence as harmless files."""
    at = io.BytesIO(archive(entries))
    unpacker = rules(str(target))
    try:
        with LayerStream(at.read) as stream:
            apply(stream, unpacker)
    except (ArchiveError, OSError, LowersNeeded):
        pass
    finally:
        unpacker.close()
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.read_bytes() != SECRET, path


def ways_out(target: Path) -> list[str]:
    """Names of the directory outside, as an archive may spell them."""
    outside = str(target.parent / "outside")
    return ["../outside", "../../../../../../.." + outside, outside, "/" + outside,
            "./../outside", "a/../../outside", "/proc/self/cwd" + outside,
            f"/proc/self/root{outside}", f"/proc/{os.getpid()}/root{outside}",
            "/proc/thread-self/root" + outside]  # fmt: skip


@BOTH
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_names_that_lead_out(place: Path, rules: Rules, kind: bytes) -> None:
    for way in ways_out(place):
        for name in ("file", "dir", "new", "dir/inner", "link"):
            attack([(f"{way}/{name}", kind, f"{way}/file")], place, rules)


@BOTH
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_links_that_lead_out(place: Path, rules: Rules, kind: bytes) -> None:
    for number, way in enumerate(ways_out(place)):
        for name in ("file", "dir", "new", "dir/inner", "link"):
            attack([(f"l{number}", SYM, way), (f"l{number}/{name}", kind, f"l{number}/file")],
                   place, rules)  # fmt: skip
            attack([(f"m{number}", SYM, f"{way}/{name}"), (f"m{number}", kind, f"m{number}"),
                    (f"m{number}/x", kind, "file")], place, rules)  # fmt: skip


@BOTH
def test_hard_links_that_lead_out(place: Path, rules: Rules) -> None:
    for number, way in enumerate(ways_out(place)):
        for name in ("file", "dir/inner", "link"):
            attack([(f"h{number}", HARD, f"{way}/{name}"), (f"h{number}", FILE, "")], place, rules)
            attack([(f"s{number}", SYM, way), (f"i{number}", HARD, f"s{number}/{name}"),
                    (f"j{number}", HARD, f"s{number}"), (f"j{number}/{name}", FILE, "")],
                   place, rules)  # fmt: skip


@BOTH
def test_whiteouts_that_lead_out(place: Path, rules: Rules) -> None:
    for number, way in enumerate(ways_out(place)):
        link = f"l{number}"
        for name in (".wh.file", ".wh.dir", ".wh..wh..opq", "dir/.wh..wh..opq", ".wh..", ".wh..."):
            attack([(f"{way}/{name}", FILE, "")], place, rules)
            attack([(link, SYM, way), (f"{link}/{name}", FILE, "")], place, rules)
            attack([(f"{link}/.wh..wh..opq", FILE, ""), (f".wh.{link}", FILE, "")], place, rules)


@BOTH
def test_swaps_between_entries(place: Path, rules: Rules) -> None:
    """A directory is used, and so kept open, then becomes a link; and every order of that."""
    for number, way in enumerate(ways_out(place)):
        name = f"d{number}"
        steps: list[Entry] = [
            (name, DIR, ""), (f"{name}/sub", DIR, ""), (f"{name}/sub/file", FILE, ""),
            (name, SYM, way), (f"{name}/file", FILE, ""), (f"{name}/dir", DIR, ""),
        ]  # fmt: skip
        for order in itertools.islice(itertools.permutations(steps), 0, None, 37):
            attack(list(order), place, rules)


@BOTH
def test_links_to_links(place: Path, rules: Rules) -> None:
    entries: list[Entry] = [
        ("a", SYM, "."), ("a/b", SYM, ".."), ("a/b/c", SYM, "../.."), ("c/outside/file", FILE, ""),
        ("b/outside/file", FILE, ""), ("x/y", DIR, ""), ("x/y/up", SYM, "../../.."),
        ("x/y/up/outside/file", FILE, ""), ("deep", SYM, "x/y/up/outside"), ("deep/file", FILE, ""),
        ("loop", SYM, "loop"), ("loop/x", FILE, ""),
    ]  # fmt: skip
    for start in range(len(entries)):
        attack(entries[start:], place, rules)
        attack(entries[: start + 1], place, rules)


@BOTH
def test_times_and_modes_of_directories_are_not_set_through_links(
    place: Path, rules: Rules
) -> None:
    """Directory times come at the end, when a link may have taken the directory's place."""
    for number, way in enumerate(ways_out(place)):
        name = f"t{number}"
        attack([(name, DIR, ""), (f"{name}/in", DIR, ""), (f".wh.{name}", FILE, ""),
                (name, SYM, way)], place, rules)  # fmt: skip
        attack([(f"{name}x", SYM, way), (f"{name}x", DIR, ""), (f"{name}x/dir", DIR, "")],
               place, rules)  # fmt: skip


@BOTH
def test_a_target_that_is_already_full_of_traps(place: Path, rules: Rules) -> None:
    for number, way in enumerate(ways_out(place)):
        (place / f"trap{number}").symlink_to(way)
        for kind in EVERY_KIND:
            for name in ("file", "dir", "dir/inner", ".wh.file", ".wh..wh..opq"):
                attack([(f"trap{number}/{name}", kind, f"trap{number}/file")], place, rules)


@pytest.mark.skipif(UID != 0, reason="only root makes devices")
@BOTH
def test_files_in_place_of_devices_are_not_written_to(place: Path, rules: Rules) -> None:
    device, pipe = place / "device", place / "pipe"
    os.mknod(device, 0o600 | 0o020000, os.makedev(1, 7))  # /dev/full
    os.mkfifo(pipe)
    attack([("device", FILE, ""), ("pipe", FILE, "")], place, rules)
    assert device.read_bytes() == pipe.read_bytes() == b"evil"
