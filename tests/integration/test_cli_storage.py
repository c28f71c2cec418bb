"""``cradle df``, ``prune``, ``fsck`` and ``backup`` on a real daemon."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.cradle import IMAGE, Cradle, running_cradle
from harness.images import LayerTar, TestImage
from harness.roots import every_file
from harness.terminals import Terminal

import cradled

OTHER = "docker.io/library/other:1"


@pytest.fixture(scope="module")
def module_cradle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_cradle(tmp_path_factory.mktemp("c")) as cradle:
        yield cradle


def add_other(cradle: Cradle) -> None:
    """An image of one layer of its own that no container is made of."""
    layer = LayerTar().add("file", data=b"x" * 300_000).bytes()
    archive = TestImage(OTHER, [layer]).write_oci_layout(cradle.daemon.directory / "other.tar")
    cradle.ok("import", str(archive))


def totals(cradle: Cradle) -> dict[str, Any]:
    (told,) = json.loads(cradle.ok("df", "--json"))
    assert told["namespace"] == cradle.daemon.namespace
    found: dict[str, Any] = told["totals"]
    return found


def test_df_and_prune(cradle: Cradle) -> None:
    add_other(cradle)
    cradle.ok("run", "-d", "--name", "alive", IMAGE, "sleep", "1000")
    cradle.ok("run", "-d", "--name", "dead", IMAGE, "true")
    cradle.run("wait", "dead")
    found = totals(cradle)
    assert found["images"]["count"] == 2
    assert 300_000 < found["images"]["reclaimable"] < found["images"]["size"]
    assert (found["containers"]["count"], found["uploads"]["count"]) == (2, 0)
    assert 0 < found["containers"]["reclaimable"] < found["containers"]["size"]
    before = found["content"]["size"] + found["snapshots"]["size"]
    rows = [line.split("\t") for line in cradle.ok("df").splitlines()]
    assert [row[0] for row in rows] == ["images", "containers", "content", "snapshots", "uploads"]
    lines = cradle.ok("df", "-v").splitlines()
    assert [line.split("\t")[4] for line in lines if f"image\t{OTHER}" in line] == ["no"]

    dry = cradle.ok("prune", "--dry-run")
    assert dry == f"image\t{OTHER}\twould be removed\n"
    assert OTHER in cradle.ok("images", "-q")
    refused = cradle.run("prune")
    assert refused.returncode == 2
    assert "use --force" in refused.stderr
    assert cradle.ok("prune", "--force") == f"image\t{OTHER}\tremoved\n"
    assert cradle.ok("images", "-q").split() == [IMAGE]
    after = totals(cradle)
    freed = before - after["content"]["size"] - after["snapshots"]["size"]
    assert freed == found["images"]["reclaimable"]
    assert cradle.ok("prune", "--containers", "--force") == "container\tdead\tremoved\n"
    assert "alive" in cradle.ok("ps")
    assert cradle.ok("prune", "--containers", "--force") == ""


def test_prune_asks_and_ends_uploads(cradle: Cradle) -> None:
    add_other(cradle)
    cradle.ok("run", "-d", "--name", "alive", IMAGE, "sleep", "1000")
    daemon = cradle.daemon

    async def begin_upload() -> None:
        async with cradled.connect(str(daemon.socket), namespace=daemon.namespace) as client:
            writer = await client.session.content.writer("broken-off", total=100)
            await writer.write(b"half")
            await writer.close()

    asyncio.run(begin_upload())
    assert totals(cradle)["uploads"] == {"count": 1, "size": 4, "reclaimable": 4}
    for answer, status in (("n", 130), ("y", 0)):
        terminal = Terminal(cradle, "prune")
        terminal.expect(f"{OTHER}.*would be removed")
        terminal.expect("Remove them")
        assert (OTHER in cradle.ok("images", "-q"), totals(cradle)["uploads"]["count"]) == (True, 1)
        terminal.type(f"{answer}\n")
        assert terminal.end() == status
    assert OTHER not in cradle.ok("images", "-q")
    assert totals(cradle)["uploads"]["count"] == 0


def test_fsck_beside_a_daemon(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "alive", IMAGE, "sleep", "1000")
    assert cradle.ok("fsck", "--verify") == "nothing is wrong\n"
    told = json.loads(cradle.ok("fsck", "--json"))
    assert told == {"running": True, "found": [], "repaired": [], "quarantine": ""}
    refused = cradle.run("fsck", "--repair")
    assert refused.returncode == 2
    assert "a daemon is running" in refused.stderr


def test_everything_is_explained(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "alive", IMAGE, "sleep", "1000")
    told = json.loads(cradle.ok("fsck", "--explain", "--json"))
    namespace, daemon = cradle.daemon.namespace, cradle.daemon
    assert {one["what"] for one in told if one["what"] == "not one of ours"} == set()
    blobs = [one for one in told if "/blobs/" in one["path"]]
    assert blobs
    for one in blobs:
        assert one["what"] == f"blob of {namespace}"
        assert any(way.startswith(f"{namespace}: image {IMAGE}") for way in one["held_by"]), one
    tree = subprocess.run(
        ["du", "-sxB1", str(daemon.root)], capture_output=True, text=True, check=True
    )
    total = sum(one["size"] for one in told if one["path"].startswith(str(daemon.root)))
    assert total == pytest.approx(int(tree.stdout.split()[0]), rel=0.02)  # but for directories
    one_of = cradle.ok("fsck", "--explain", "alive")
    assert f"active snapshot alive of {namespace}" in one_of
    assert f"held by {namespace}: container alive" in one_of
    assert cradle.run("fsck", "--explain", "nothing-like-it").returncode == 1


def test_backup_and_restore(cradle: Cradle, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    cradle.ok("run", "-d", "--name", "before", IMAGE, "sleep", "1000")
    assert cradle.ok("backup", str(file)).startswith(f"{file}\t")
    cradle.ok("run", "-d", "--name", "after", IMAGE, "sleep", "1000")
    daemon = cradle.daemon
    command = [*daemon.command(), "restore", str(file)]
    busy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert busy.returncode == 2
    assert "in use by another daemon" in busy.stderr
    daemon.stop()
    kept = set(every_file(daemon.root / "io.containerd.content.v1.content").values())
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "meta.db" in done.stdout
    daemon.start()
    names = {row["name"] for row in json.loads(cradle.ok("ps", "--json"))}
    assert names == {"before", "after"}  # what is newer is known by its bundle
    assert cradle.ok("images", "-q").split() == [IMAGE]
    assert set(every_file(daemon.root / "io.containerd.content.v1.content").values()) == kept
    assert cradle.ok("prune", "--recovered", "--force").startswith("lease\trecovered-")
    assert cradle.ok("exec", "after", "echo", "alive") == "alive\n"
