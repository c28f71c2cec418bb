"""kill -9 while blobs and snapshots are made: what was acknowledged is there, and whole."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled import digest
from cradled.aio import threads
from cradled.content.local import LocalContentStore, open_store
from cradled.snapshotters.overlay import OverlaySnapshotter

WRITER = """
    import asyncio, sys
    from cradled.content.local import open_store

    def blob(number):
        return (b"%09d" % number) * (1 + number % 7 * 40_000)

    async def main(root, point):
        store = await open_store(root)

        async def client(first):
            for number in range(first, 1 << 30, 4):
                data = blob(number)
                writer = await store.writer(f"ref{number}", total=len(data))
                for start in range(0, len(data), 200_000):
                    await writer.write(data[start : start + 200_000])
                await writer.commit(len(data), "", {})
                print(number, len(data), writer.digest(), flush=True)

        await asyncio.gather(*map(client, range(4)))

    asyncio.run(main(*sys.argv[1:]))
"""
SNAPSHOTTER = """
    import asyncio, sys
    from cradled.snapshotters.overlay import OverlaySnapshotter

    async def main(root, point):
        snapshotter = OverlaySnapshotter(root)
        await snapshotter.start()

        async def client(first):
            parent = ""
            for number in range(first, 1 << 30, 4):
                await snapshotter.prepare(f"k{number}", parent, {})
                print("k", number, flush=True)
                if number % 3 == 0:
                    parent = f"n{number}"
                    await snapshotter.commit(parent, f"k{number}", {})
                    print("n", number, flush=True)
                elif number % 5 == 0:
                    print("x", number, flush=True)
                    await snapshotter.remove(f"k{number}")
                    await snapshotter.cleanup()

        await asyncio.gather(*map(client, range(4)))

    asyncio.run(main(*sys.argv[1:]))
"""


def run_and_kill(program: str, root: Path, lines: int) -> list[list[str]]:
    """Start a program and kill it after so many lines; returns all whole lines it wrote."""
    command = [sys.executable, "-c", textwrap.dedent(program), str(root), ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    assert all(said), "the program ended by itself"
    complete = "".join(said) + rest[: rest.rfind("\n") + 1]
    return [line.split() for line in complete.splitlines()]


@pytest.fixture(autouse=True)
def settle() -> Iterator[None]:
    yield
    threads.close()


async def whole(store: LocalContentStore, root: Path) -> dict[str, int]:
    """Digest and size of every blob, each checked against its bytes."""
    found = {}
    for path in (root / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    async for info in store.walk():
        found[info.digest] = info.size
    return found


@pytest.mark.parametrize("lines", [1, 7, 60, 250])
async def test_content(tmp_path: Path, lines: int) -> None:
    acknowledged: dict[str, int] = {}
    for _ in range(2):  # the second run begins with the leftovers of the first
        for _number, size, name in run_and_kill(WRITER, tmp_path, lines):
            acknowledged[name] = int(size)
        store = await open_store(str(tmp_path))
        found = await whole(store, tmp_path)
        assert acknowledged.items() <= found.items()
        for status in await store.list_statuses():
            writer = await store.writer(status.ref)
            assert writer.status().offset == status.offset
            await writer.close()
            await store.abort(status.ref)
        assert list((tmp_path / "ingest").iterdir()) == []
        for name in found:
            await store.delete(name)
        acknowledged.clear()


async def test_content_resumes_where_it_was_killed(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from cradled.content.local import open_store

        async def main(root, _):
            store = await open_store(root)
            writer = await store.writer("r", total=8 << 20)
            for number in range(8):
                await writer.write(bytes([number]) * (1 << 20))
                print(writer.status().offset, flush=True)
            await asyncio.sleep(1000)

        asyncio.run(main(*sys.argv[1:]))
    """
    run_and_kill(program, tmp_path, 8)
    data = b"".join(bytes([number]) * (1 << 20) for number in range(8))
    store = await open_store(str(tmp_path))
    writer = await store.writer("r", total=len(data))
    offset = writer.status().offset
    assert offset > 0  # big writes are on their way at once
    assert writer.digest() == digest.of(data[:offset])
    await writer.write(data[offset:])
    await writer.commit(len(data), digest.of(data), {})


@pytest.mark.skipif(os.geteuid() != 0, reason="owners of directories need root")
@pytest.mark.parametrize("lines", [1, 20, 150])
async def test_snapshots(tmp_path: Path, lines: int) -> None:
    said = run_and_kill(SNAPSHOTTER, tmp_path, lines)
    prepared = {int(number) for what, number in said if what == "k"}
    committed = {int(number) for what, number in said if what == "n"}
    removed = {int(number) for what, number in said if what == "x"}
    snapshotter = OverlaySnapshotter(str(tmp_path))
    await snapshotter.start()
    found = {info.name async for info in snapshotter.walk()}
    assert {f"n{number}" for number in committed} <= found
    for number in prepared - committed - removed:
        assert {f"k{number}", f"n{number}"} & found  # the commit may have been done unheard
    await snapshotter.cleanup()
    assert len(os.listdir(tmp_path / "snapshots")) == len(found)
    for name in found:
        if name.startswith("k"):
            for mount in await snapshotter.mounts(name):
                words = dict(option.partition("=")[::2] for option in mount.options)
                directories = [words.get("upperdir", mount.source)]
                directories += [words["workdir"]] if "workdir" in words else []
                assert all(os.path.isdir(directory) for directory in directories)
    await snapshotter.prepare("after", "", {})
    await snapshotter.aclose()
