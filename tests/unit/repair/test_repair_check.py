"""The check finds what was spoilt, and nothing else; repairing makes it clean, removing nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import roots

from cradled import digest as digests
from cradled.repair.check import check
from cradled.repair.findings import Kind
from cradled.repair.ground import Ground
from cradled.repair.mend import Mending

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="snapshots describe themselves as root")

LAYER = digests.of(roots.LAYERS[0])
CHAIN = digests.chain_ids([digests.of(layer) for layer in roots.LAYERS])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template")
    roots.make(directory)
    return directory


@pytest.fixture
def ground(template: Path, tmp_path: Path) -> Ground:
    roots.copy(template, tmp_path / "copy")
    return roots.ground_at(tmp_path / "copy")


def blob(ground: Ground, digest: str = LAYER) -> Path:
    return Path(ground.content, "blobs", *digest.split(":"))


def sql(ground: Ground, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(ground.metadata, isolation_level=None)) as connection:
        connection.execute(statement, values)


def records(ground: Ground) -> Path:
    return Path(ground.snapshotters["native"], "metadata.db")


def layer_directory(ground: Ground) -> Path:
    return Path(ground.snapshotters["native"], "snapshots", "1")


def leave_socket(ground: Ground) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{ground.sockets}/dead")


def same_size(ground: Ground) -> None:
    path = blob(ground)
    path.write_bytes(b"x" * path.stat().st_size)


def half_write_database(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("left")


CASES: dict[str, tuple[Callable[[Ground], Any], set[tuple[Kind, str]]]] = {
    "a blob is gone": (lambda g: blob(g).unlink(), {(Kind.MISSING, "content")}),
    "a blob is short": (lambda g: os.truncate(blob(g), 5), {(Kind.CORRUPT, "content")}),
    "a blob is other": (same_size, {(Kind.CORRUPT, "content")}),
    "a blob is nobody's": (
        lambda g: sql(g, "DELETE FROM content WHERE digest=?", LAYER),
        {(Kind.ORPHANED, "content"), (Kind.NOTE, "content")},
    ),
    "a file among blobs": (
        lambda g: touch(blob(g).parent / "notes"),
        {(Kind.LEFTOVER, "content")},
    ),
    "an upload is nobody's": (
        lambda g: sql(g, "DELETE FROM ingests"),
        {(Kind.ORPHANED, "ingests")},
    ),
    "an upload without a name": (
        lambda g: touch(Path(g.content, "ingest", "0" * 64, "data")),
        {(Kind.LEFTOVER, "ingests")},
    ),
    "labels": (
        lambda g: sql(g, "UPDATE images SET labels='{'"),
        {(Kind.CORRUPT, "images")},
    ),
    "metadata": (
        lambda g: half_write_database(Path(g.metadata)),
        {(Kind.CORRUPT, "metadata")},
    ),
    "no metadata": (
        lambda g: Path(g.metadata).unlink(),
        {(Kind.ORPHANED, part) for part in ("content", "snapshots/native", "ingests", "tasks")},
    ),
    "records": (
        lambda g: half_write_database(records(g)),
        {(Kind.CORRUPT, "snapshots/native")},
    ),
    "a directory is gone": (
        lambda g: shutil.rmtree(layer_directory(g)),
        {(Kind.MISSING, "snapshots/native")},
    ),
    "a directory too many": (
        lambda g: (layer_directory(g).parent / "new-9").mkdir(),
        {(Kind.LEFTOVER, "snapshots/native")},
    ),
    "a directory without record": (
        lambda g: (layer_directory(g).parent / "77").mkdir(),
        {(Kind.ORPHANED, "snapshots/native")},
    ),
    "a snapshot is nobody's": (
        lambda g: sql(g, "DELETE FROM snapshots WHERE key='box'"),
        {(Kind.ORPHANED, "snapshots/native"), (Kind.NOTE, "containers")},
    ),
    "a task without container": (
        lambda g: sql(g, "DELETE FROM containers"),
        {(Kind.ORPHANED, "tasks")},
    ),
    "a lease that is none": (
        lambda g: sql(g, "INSERT INTO lease_resources VALUES ('ns', 'l', 'content', 'x')"),
        {(Kind.ORPHANED, "leases")},
    ),
    "a dead socket": (leave_socket, {(Kind.LEFTOVER, "sockets")}),
    "a hidden bundle": (
        lambda g: Path(g.bundles, "ns", ".gone.3").mkdir(),
        {(Kind.LEFTOVER, "tasks")},
    ),
    "a work directory": (
        lambda g: Path(g.work, "ns", "gone").mkdir(),
        {(Kind.LEFTOVER, "tasks")},
    ),
    "a temporary file": (
        lambda g: touch(Path(f"{g.metadata}.rebuild.tmp")),
        {(Kind.LEFTOVER, "files")},
    ),
}


def found(ground: Ground) -> set[tuple[Kind, str]]:
    return {(one.kind, one.what) for one in check(ground, verify=True)}


def test_nothing_is_wrong_with_what_a_daemon_leaves(ground: Ground) -> None:
    assert check(ground, verify=True) == []


@pytest.mark.parametrize("case", CASES)
def test_it_is_found_and_repaired(ground: Ground, case: str) -> None:
    spoil, expected = CASES[case]
    spoil(ground)
    directory = Path(ground.root).parent
    before = set(roots.every_file(directory).values())
    changed = [ground.metadata, str(records(ground))]
    assert found(ground) == expected
    assert set(roots.every_file(directory).values()) == before  # looking changes nothing
    before = {
        digest for path, digest in roots.every_file(directory).items()
        if not any(f"{directory}/{path}".startswith(one) for one in changed)
    }  # fmt: skip
    mending = Mending(ground)
    left = mending.mend(lambda: check(ground, verify=True))
    assert [one for one in left if one.is_problem and one.repair] == []
    assert before <= set(roots.every_file(directory).values())  # nothing was removed
    assert Path(mending.quarantine, "notes.jsonl").exists()


def test_a_rebuilding_brings_back_what_was_known(ground: Ground) -> None:
    """All but what clients had said themselves, which nothing else tells."""
    Path(ground.metadata).unlink()
    Path(f"{ground.metadata}.copy").unlink()
    Mending(ground).mend(lambda: check(ground))
    (note,) = check(ground, verify=True)
    assert note.kind is Kind.NOTE
    assert "it was missing" in note.text or "what has no record" in note.text

    async def look(stores: roots.Stores) -> None:
        ns = stores.scoped()
        (image,) = await ns.images.list()
        assert image.name == roots.NAME
        container = await ns.containers.get("box")
        assert (container.snapshotter, container.snapshot_key) == ("native", "box")
        assert container.image == roots.NAME
        assert container.spec is not None
        assert container.spec.value == b'{"ociVersion":"1"}'
        config = digests.of(roots.documents()[0])
        assert (await ns.content.info(config)).labels == {
            "containerd.io/gc.ref.snapshot.native": CHAIN[-1]
        }
        assert (await ns.snapshots("native").stat("box")).parent == CHAIN[1]
        assert (await ns.content.status("upload")).offset == 4
        (lease,) = await ns.leases.list()
        await ns.leases.delete(lease.id)
        from cradled.gc.scheduler import Scheduler

        scheduler = Scheduler(stores.db)
        removed = dict((await scheduler.collect()).removed)
        assert removed == {"content": 1}  # the index gave its name away; labels keep the rest
        await scheduler.aclose()

    roots.use(ground, look)


def test_the_copy_of_the_last_stop_knows_the_rest(ground: Ground) -> None:
    """What is gone since is not brought back, nor by a repair that is about something else."""
    blob(ground).unlink()
    Mending(ground).mend(lambda: check(ground))
    sql(ground, "DELETE FROM containers")
    Path(ground.bundles, "ns", "box", "config.json").unlink()
    sql(ground, "DELETE FROM ingests")
    Mending(ground).mend(lambda: check(ground))

    async def without(stores: roots.Stores) -> None:
        assert await stores.scoped().containers.list() == []

    roots.use(ground, without)
    roots.use(ground, lambda stores: write_label(stores, "new"))
    Path(ground.metadata).unlink()
    Mending(ground).mend(lambda: check(ground))

    async def look(stores: roots.Stores) -> None:
        (image,) = await stores.scoped().images.list()
        assert image.labels == {"a": "new"}
        found = [info.digest async for info in stores.scoped().content.walk()]
        assert LAYER not in found
        assert len(found) == 4

    roots.use(ground, look)


async def write_label(stores: roots.Stores, value: str) -> None:
    images = stores.scoped().images
    (image,) = await images.list()
    await images.update(replace(image, labels={"a": value}), ("labels",))


def test_what_is_dropped_is_noted(ground: Ground) -> None:
    blob(ground).unlink()
    mending = Mending(ground)
    mending.mend(lambda: check(ground))
    lines = Path(mending.quarantine, "notes.jsonl").read_text().splitlines()
    notes = [json.loads(line) for line in lines]
    assert notes[0]["forgotten"][0]["digest"] == LAYER
    assert notes[1]["kind"] == "missing"


def test_snapshots_of_a_database_that_is_set_aside_stay(ground: Ground) -> None:
    half_write_database(records(ground))
    half_write_database(Path(ground.metadata))
    left = Mending(ground).mend(lambda: check(ground, verify=True))
    assert [one for one in left if one.is_problem] == []

    async def look(stores: roots.Stores) -> None:
        assert (await stores.scoped().snapshots("native").stat("box")).parent == CHAIN[1]

    roots.use(ground, look)


class TestProgram:
    def test_exit_status(self, ground: Ground) -> None:
        done = roots.cradled(ground, "fsck", "--verify")
        assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is wrong\n", "")
        same_size(ground)
        assert roots.cradled(ground, "fsck").returncode == 0
        done = roots.cradled(ground, "fsck", "--verify", "--json")
        told = json.loads(done.stdout)
        assert done.returncode == 1
        assert [one["kind"] for one in told["found"]] == ["corrupt"]
        done = roots.cradled(ground, "fsck", "--verify", "--repair")
        assert done.returncode == 0
        assert "repaired: content" in done.stdout
        assert "it is not complete without" in done.stdout
        shutil.rmtree(ground.root)
        done = roots.cradled(ground, "fsck")
        assert (done.returncode, done.stdout) == (2, "")
        assert "there is no" in done.stderr
