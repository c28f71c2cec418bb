"""Random damage to all that a daemon keeps: it opens, it is checked, and nothing healthy is lost.

A small root is spoilt by flipped bits, cut and swapped files, removed ones and garbage. Whatever
was done: the check ends, and changes nothing; the stores open as a daemon opens them; repairing
removes nothing and leaves nothing that could be repaired; blobs that were not hit are readable
after all of it, and so is the image if none of its parts was hit.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import roots

from cradled.errors import Internal
from cradled.repair import explain, rebuild
from cradled.repair.check import check
from cradled.repair.ground import Ground
from cradled.repair.mend import Mending

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="snapshots describe themselves as root")

ROUNDS = int(os.environ.get("CRADLED_FUZZ_ROUNDS", "15"))
SEED = int(os.environ.get("CRADLED_FUZZ_SEED", "1"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template")
    roots.make(directory)
    return directory


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(dice.choice((1, 3, 50))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def cut(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(path.stat().st_size + 1))


def remove(path: Path, dice: random.Random) -> None:
    path.unlink()


def garbage(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(dice.choice((0, 1, 100, 20_000))))


def zero_page(path: Path, dice: random.Random) -> None:
    with open(path, "r+b") as file:
        file.seek(4096 * dice.randrange(max(path.stat().st_size // 4096, 1)))
        file.write(b"\0" * 4096)


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, remove, garbage, zero_page)


def spoil(directory: Path, dice: random.Random) -> set[str]:
    """Hit a few files, the databases more often; where they are."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    files += 5 * [path for path in files if path.suffix == ".db"]
    hit = set()
    for path in dice.sample(files, dice.randint(1, 4)):
        if path.exists() and dice.random() < 0.1:
            other = dice.choice([one for one in files if one.exists()])
            data = path.read_bytes(), other.read_bytes()
            path.write_bytes(data[1])
            other.write_bytes(data[0])
            hit |= {str(path), str(other)}
        elif path.exists():
            dice.choice(WAYS)(path, dice)
            hit.add(str(path))
    return hit


async def live(stores: roots.Stores, ground: Ground) -> None:
    """What a daemon does when it starts, and one collection."""
    from cradled.gc.scheduler import Scheduler

    if stores.db.rebuild is not None:
        native = {"native": stores.native}
        await rebuild.take_in(stores.db, rebuild.Stores(stores.content, native, ground.bundles))
    scheduler = Scheduler(stores.db)
    try:
        await scheduler.collect()
    finally:
        await scheduler.aclose()
    for namespace, _ in await stores.db.namespaces.list():
        ns = stores.scoped(namespace)
        await ns.images.list_records()
        await ns.containers.list_records()
        await ns.leases.list()


def restart(ground: Ground) -> None:
    """Start until nothing is met that only shows when it is used: then the next start repairs."""
    try:
        roots.use(ground, lambda stores: live(stores, ground))
    except Internal as error:
        if "restart the daemon to have it repaired" not in str(error):
            raise
        roots.use(ground, lambda stores: live(stores, ground))


def whole_blobs(ground: Ground) -> set[str]:
    found = set()
    for path in Path(ground.content, "blobs").rglob("*"):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == path.name:
            found.add(path.name)
    return found


def run(template: Path, directory: Path, seed: int) -> None:
    dice = random.Random(seed)
    roots.copy(template, directory)
    ground = roots.ground_at(directory)
    hit = spoil(directory, dice)
    spared = whole_blobs(ground)
    before = roots.every_file(directory)
    check(ground, verify=True)
    list(explain.explain(ground))
    assert roots.every_file(directory) == before, hit
    if dice.random() < 0.5:
        restart(ground)
    else:
        mending = Mending(ground)
        left = mending.mend(lambda: check(ground, verify=True))
        assert [one for one in left if one.is_problem and one.repair] == [], hit
        kept = set(roots.every_file(directory).values())
        databases = (ground.metadata, *(f"{d}/metadata.db" for d in ground.snapshotters.values()))
        for path, digest in before.items():
            if not f"{directory}/{path}".startswith(databases):
                assert digest in kept, (path, hit)
        restart(ground)
    assert spared <= whole_blobs(ground), hit


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_random_damage(
    template: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    run(template, tmp_path / "copy", seed)
    shutil.rmtree(tmp_path / "copy")
