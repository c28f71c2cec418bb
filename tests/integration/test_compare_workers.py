"""Layers made by the comparer, the pool and a confined worker, of real mounts."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from cradled import errors
from cradled.content.local import open_store
from cradled.core.content import ContentInfo, ContentStore, IngestStatus
from cradled.core.diff import DiffOptions
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.differs.compare import WalkingComparer
from cradled.digest import of
from cradled.events.exchange import Exchange
from cradled.linux.tree import remove_tree
from cradled.metadata.db import Database
from cradled.workers.pool import Pool
from cradled.zygote.client import Zygote

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LAYER = "application/vnd.oci.image.layer.v1.tar"
UNCOMPRESSED = "containerd.io/uncompressed"
PLAIN = DiffOptions(media_type=LAYER)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    zygote = Zygote()
    pool = Pool(zygote, str(tmp_path), size=2, idle=60)
    yield pool
    await pool.aclose()
    await zygote.aclose()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
async def content(tmp_path: Path) -> AsyncIterator[ContentStore]:
    db = await Database.open(
        str(tmp_path / "meta.db"),
        content=await open_store(str(tmp_path / "content")),
        snapshotters={},
        publisher=Exchange(),
    )
    yield db.scoped(Scope("ns")).content
    await db.aclose()


@pytest.fixture
def differ(pool: Pool) -> WalkingComparer:
    return WalkingComparer(pool)


class Overlay:
    """Directories on top of each other; ``left`` shows all but the topmost, ``right`` all."""

    def __init__(self, top: Path, words: Sequence[str] = ("index=off",)) -> None:
        self.top = top
        self.words = words
        self.layers: list[Path] = []

    def layer(self) -> Path:
        made = self.top / f"{len(self.layers)}"
        for path in (made / "fs", made / "work"):
            path.mkdir(parents=True)
        self.layers.append(made / "fs")
        return made / "fs"

    @property
    def left(self) -> list[Mount]:
        return self._view(self.layers[:-1])

    @property
    def right(self) -> list[Mount]:
        *lowers, upper = self.layers
        words = (f"workdir={upper.parent / 'work'}", f"upperdir={upper}", self._lowerdir(lowers))
        return [Mount("overlay", "overlay", (*words, *self.words))]

    @property
    def committed(self) -> list[Mount]:
        return self._view(self.layers)

    def _view(self, layers: list[Path]) -> list[Mount]:
        if len(layers) == 1:
            return [Mount("bind", str(layers[0]), ("ro", "rbind"))]
        return [Mount("overlay", "overlay", (self._lowerdir(layers), *self.words))]

    def _lowerdir(self, layers: list[Path]) -> str:
        return "lowerdir=" + ":".join(str(layer) for layer in reversed(layers))

    @contextlib.contextmanager
    def merged(self) -> Iterator[Path]:
        target = self.top / "merged"
        target.mkdir(exist_ok=True)
        words = ",".join(self.right[0].options)
        subprocess.run(["mount", "-t", "overlay", "-o", words, "overlay", str(target)], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", str(target)], check=True)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    made = Overlay(tmp_path / "layers")
    base = made.layer()
    for name in ("a", "d/one", "d/two", "d/sub/three", "e/f/g"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    made.layer()
    yield made
    remove_tree(str(made.top))  # what is very deep is too much for pytest


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


async def blob(content: ContentStore, digest: str) -> bytes:
    reader = await content.open(digest)
    try:
        return await reader.read(0, reader.size)
    finally:
        reader.close()


async def layer_of(
    differ: WalkingComparer, content: ContentStore, left: list[Mount], right: list[Mount]
) -> bytes:
    return await blob(content, (await differ.compare(left, right, content, PLAIN)).digest)


def _unzstd(data: bytes) -> bytes:
    return zstd.decompress(data)


@pytest.mark.parametrize(
    ("asked", "made", "unpack"),
    [
        ("", f"{LAYER}+gzip", gzip.decompress),
        (f"{LAYER}+gzip", f"{LAYER}+gzip", gzip.decompress),
        (f"{LAYER}+zstd", f"{LAYER}+zstd", _unzstd),
        (LAYER, LAYER, bytes),
    ],
)
async def test_media_types(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay,
    asked: str, made: str, unpack: Any,
) -> None:  # fmt: skip
    with overlay.merged() as merged:
        (merged / "d/big").write_bytes(os.urandom(1 << 20) + bytes(4 << 20))
    options = DiffOptions(media_type=asked, labels={"mine": "yes"})
    layer = await differ.compare(overlay.left, overlay.right, content, options)
    assert layer.media_type == made
    data = await blob(content, layer.digest)
    assert (of(data), len(data)) == (layer.digest, layer.size)
    assert names(unpack(data)) == ["d", "d/big"]
    diff_id = {} if made == LAYER else {UNCOMPRESSED: of(unpack(data))}
    assert (await content.info(layer.digest)).labels == {"mine": "yes", **diff_id}
    assert await content.list_statuses() == []
    with pytest.raises(errors.Unimplemented, match=r"^unsupported diff media type: x/y"):
        await differ.compare([], [], content, DiffOptions(media_type="x/y"))


async def test_gzip_headers_tell_nothing_of_the_machine(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay
) -> None:
    made = await differ.compare(overlay.left, overlay.right, content, DiffOptions())
    assert (await blob(content, made.digest))[:8] == bytes.fromhex("1f8b080000000000")
    again = await differ.compare(overlay.left, overlay.right, content, DiffOptions())
    assert again == made


async def test_a_blob_that_was_there_gets_the_label(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay
) -> None:
    made = await differ.compare(overlay.left, overlay.right, content, DiffOptions())
    before = await content.update(ContentInfo(made.digest, 0, labels={"mine": "yes"}))
    assert before.labels == {"mine": "yes"}
    options = DiffOptions(labels={"of-no-effect": "now"})
    assert await differ.compare(overlay.left, overlay.right, content, options) == made
    labels = (await content.info(made.digest)).labels
    assert labels == {"mine": "yes", UNCOMPRESSED: of(bytes(1024))}


async def test_of_nothing_an_empty_tar_is_made(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay
) -> None:
    assert await layer_of(differ, content, overlay.left, overlay.right) == bytes(1024)
    assert await layer_of(differ, content, overlay.left, overlay.left) == bytes(1024)


@pytest.mark.parametrize("words", [("index=off",), ("index=off", "redirect_dir=on"),
                                   ("index=off", "redirect_dir=on", "metacopy=on")])  # fmt: skip
async def test_the_topmost_layer_tells_all(
    differ: WalkingComparer, content: ContentStore, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Walking it alone gives what walking both trees gives."""
    overlay = Overlay(tmp_path / "layers", words)
    base, middle = overlay.layer(), overlay.layer()
    for place, name in ((base, "d/s/one"), (base, "d/two"), (base, "m/a/b/c"), (base, "gone/x"),
                        (base, "same"), (base, "mode"), (middle, "d/s/three"), (middle, "back/y"),
                        (base, "r/deep/er/z"), (base, "back/old"),
                        (base, "taken/t"), (base, "taker/sub/s")):  # fmt: skip
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name * 100)
    overlay.layer()
    with overlay.merged() as merged:
        shutil.rmtree(merged / "gone")
        shutil.rmtree(merged / "d")
        (merged / "d/s").mkdir(parents=True)
        (merged / "d/s/new").write_text("new")
        subprocess.run(["mv", "r", "renamed"], cwd=merged, check=True)  # noqa: ASYNC221
        (merged / "renamed/deep/er/more").write_text("more")
        subprocess.run(["mv", "m/a/b", "moved"], cwd=merged, check=True)  # noqa: ASYNC221
        shutil.rmtree(merged / "taken")
        subprocess.run(["mv", "taker", "taken"], cwd=merged, check=True)  # noqa: ASYNC221
        (merged / "mode").chmod(0o600)
        shutil.rmtree(merged / "back")
        (merged / "back").write_text("no directory now")
        (merged / "same").write_text("same" * 100)
        times = os.stat(base / "same")
        os.utime(merged / "same", ns=(times.st_atime_ns, times.st_mtime_ns))
    quick = await layer_of(differ, content, overlay.left, overlay.right)
    # An empty mount below makes it a pair that is walked in full.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    below = Mount("bind", str(scratch), ("rbind",))
    full = await layer_of(differ, content, [below, *overlay.left], [below, *overlay.right])
    assert quick == full
    assert {".wh.gone", "d/.wh.two", "d/s/.wh.three", "d/s/new", "renamed/deep/er/z", "moved/c",
            "back", "mode", ".wh.r", "m/a/.wh.b", "taken/.wh.t",
            "taken/sub/s"} <= set(names(quick))  # fmt: skip
    assert "same" not in names(quick)
    assert await layer_of(differ, content, overlay.left, overlay.committed) == quick


async def test_a_directory_in_use_is_left_alone(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay
) -> None:
    """The right side may be a running container's."""
    with overlay.merged() as merged:
        (merged / "d/new").write_text("1")
        layer = await layer_of(differ, content, overlay.left, overlay.right)
        (merged / "d/after").write_text("2")
    assert names(layer) == ["d", "d/new"]
    assert sorted(os.listdir(overlay.layers[1])) == ["d"]


async def test_the_source_date_epoch_is_the_latest_time(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay
) -> None:
    with overlay.merged() as merged:
        for name, time in (("older", 500), ("newer", 2_000_000_000)):
            (merged / name).write_text(name)
            os.utime(merged / name, (time, time))
        (merged / "a").unlink()
    options = DiffOptions(media_type=LAYER, source_date_epoch=1_000 * 10**9 + 5)
    made = await differ.compare(overlay.left, overlay.right, content, options)
    with tarfile.open(fileobj=io.BytesIO(await blob(content, made.digest))) as archive:
        times = {info.name: info.mtime for info in archive}
    assert times == {".wh.a": 0, "older": 500, "newer": 1_000}


async def test_deep_and_wide(
    differ: WalkingComparer, content: ContentStore, overlay: Overlay
) -> None:
    """Deeper than descriptors may be open."""
    depth = 1500
    with overlay.merged() as merged:
        fd = os.open(merged, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd) if _ else os.mkdir("deep", dir_fd=fd)
            inner = os.open("d" if _ else "deep", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        for number in range(2000):
            (merged / f"wide{number:04}").touch()
    found = names(await layer_of(differ, content, overlay.left, overlay.right))
    assert len(found) == depth + 1 + 2000
    assert found[depth].endswith("/d/bottom")


class TestFailures:
    """Whatever happens, no ingest of ours stays and the worker is gone or idle."""

    async def test_a_mount_that_fails(
        self, differ: WalkingComparer, content: ContentStore, tmp_path: Path
    ) -> None:
        missing = [Mount("bind", str(tmp_path / "missing"), ("rbind",))]
        with pytest.raises(errors.Error, match="no such file or directory"):
            await differ.compare([], missing, content, DiffOptions())
        assert await content.list_statuses() == []

    async def test_a_ref_that_another_writes(
        self, differ: WalkingComparer, content: ContentStore, overlay: Overlay
    ) -> None:
        writer = await content.writer("mine")
        with pytest.raises(errors.Unavailable):
            await differ.compare(overlay.left, overlay.right, content, DiffOptions(ref="mine"))
        await writer.close()

    async def test_what_a_ref_had_is_dropped(
        self, differ: WalkingComparer, content: ContentStore, overlay: Overlay
    ) -> None:
        writer = await content.writer("mine")
        await writer.write(b"something else" * 1000)
        await writer.close()
        options = DiffOptions(media_type=LAYER, ref="mine")
        made = await differ.compare(overlay.left, overlay.right, content, options)
        assert await blob(content, made.digest) == bytes(1024)

    @pytest.mark.parametrize("ref", ["", "mine"])
    async def test_cancelled_midway(
        self, differ: WalkingComparer, content: ContentStore, overlay: Overlay, ref: str
    ) -> None:
        """Only the ingest of a ref that the caller gave stays, as in the original."""
        with overlay.merged() as merged:
            (merged / "huge").touch()
            os.truncate(merged / "huge", 1 << 40)
        options = DiffOptions(media_type=LAYER, ref=ref)
        task = asyncio.create_task(differ.compare(overlay.left, overlay.right, content, options))
        seen = await _progress(content)
        assert ref in ("", seen.ref)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [status.ref for status in await content.list_statuses()] == ([ref] if ref else [])
        assert await layer_of(differ, content, overlay.left, overlay.left) == bytes(1024)

    async def test_more_than_there_are_workers(
        self, differ: WalkingComparer, content: ContentStore, overlay: Overlay
    ) -> None:
        """Those that wait for a worker hold no thread that the others need."""
        with overlay.merged() as merged:
            (merged / "file").write_bytes(os.urandom(3 << 20))
        made = await asyncio.gather(
            *(differ.compare(overlay.left, overlay.right, content, PLAIN) for _ in range(12))
        )
        assert len(set(layer.digest for layer in made)) == 1


async def _progress(content: ContentStore) -> IngestStatus:
    while True:
        for status in await content.list_statuses():
            if status.offset > 1 << 20:
                return status
        await asyncio.sleep(0)
