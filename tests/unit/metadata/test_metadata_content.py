"""The namespaced content store: sharing, leases, events, and what a crash leaves."""

from __future__ import annotations

import asyncio
import time

import pytest
from harness.metadata import World

from cradled import digest, failpoints
from cradled.core.leases import Resource
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from cradled.metadata.content import EXPIRY
from cradled.metadata.db import ScopedDatabase
from cradled.testing.content_suite import digests, get, put

DATA = b"some content"
D = digest.of(DATA)


async def test_events(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    await ns.content.delete(D)
    assert world.events.take() == [("ns", "/content/create"), ("ns", "/content/delete")]


async def test_a_namespace_has_only_its_own(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    other = world.scoped("other").content
    for call in (other.info, other.open, other.delete):
        with pytest.raises(NotFound, match=f"content digest {D}"):
            await call(D)
    assert await digests(other) == set()


async def test_shared_content_is_adopted_without_bytes(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    other = world.scoped("other").content
    writer = await other.writer("r", total=len(DATA), expected=D)
    status = writer.status()
    assert (status.offset, status.total, writer.digest()) == (len(DATA), len(DATA), D)
    assert await other.status("r") == status
    await writer.commit(len(DATA), D, {"a": "1"})
    info = await other.info(D)
    assert (info.size, info.labels) == (len(DATA), {"a": "1"})
    assert await other.list_statuses() == []
    await ns.content.delete(D)
    await world.settled()
    assert await get(other, D) == DATA
    assert world.blobs.ingests == {}


async def test_writing_to_a_complete_writer_copies(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    other = world.scoped("other").content
    writer = await other.writer("r", expected=D)
    await writer.write(b"more")
    assert writer.status().offset == len(DATA) + 4
    await writer.commit(0, digest.of(DATA + b"more"), {})
    assert await get(other, digest.of(DATA + b"more")) == DATA + b"more"
    writer = await other.writer("r2", expected=D)
    await writer.truncate()
    assert writer.status().offset == 0
    await writer.write(DATA)
    await writer.commit(len(DATA), D, {})
    assert await get(other, D) == DATA


async def test_a_complete_writer_checks(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    other = world.scoped("other").content
    writer = await other.writer("r", expected=D)
    with pytest.raises(FailedPrecondition) as caught:
        await writer.commit(5, "", {})
    assert str(caught.value) == '"r" failed size validation: 12 != 5: failed precondition'
    writer = await other.writer("r2", expected=D)
    with pytest.raises(FailedPrecondition, match=f"unexpected commit digest {D}, expected"):
        await writer.commit(0, digest.EMPTY, {})
    writer = await other.writer("r3", expected=D)
    with pytest.raises(InvalidArgument, match="label key and value length"):
        await writer.commit(0, D, {"k": "v" * 4096})
    assert await digests(other) == set()


async def test_isolated_namespaces_must_send_all_bytes(world: World, ns: ScopedDatabase) -> None:
    world.isolated = True
    await world.reopen()
    await put(world.scoped().content, DATA)
    other = world.scoped("other").content
    writer = await other.writer("r", total=len(DATA), expected=D)
    assert writer.status().offset == 0
    await writer.write(DATA)
    await writer.commit(len(DATA), D, {})
    assert await get(other, D) == DATA
    assert len(world.blobs.blobs) == 1


async def test_isolated_sha512_is_no_way_round(world: World) -> None:
    world.isolated = True
    await world.reopen()
    wanted = digest.of(DATA, "sha512")
    for namespace in ("ns", "other"):
        writer = await world.scoped(namespace).content.writer("r", expected=wanted)
        assert writer.status().offset == 0
        await writer.write(DATA)
        await writer.commit(len(DATA), wanted, {})


async def test_a_shareable_namespace_gives_even_then(world: World) -> None:
    world.isolated = True
    await world.reopen()
    await world.db.namespaces.create("open", {"containerd.io/namespace.shareable": "true"})
    await put(world.scoped("open").content, DATA)
    writer = await world.scoped("other").content.writer("r", expected=D)
    assert writer.status().offset == len(DATA)
    await writer.close()


async def test_content_that_exists_joins_the_lease(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    await ns.leases.create("one")
    await ns.leases.create("two")
    with pytest.raises(AlreadyExists, match=f"content {D}"):
        await world.scoped(lease="one").content.writer("r", expected=D)
    assert await ns.leases.list_resources("one") == [Resource(D, "content")]
    writer = await world.scoped(lease="two").content.writer("r")
    await writer.write(DATA)
    with pytest.raises(AlreadyExists, match=f"content {D}"):
        await writer.commit(0, "", {})
    assert await ns.leases.list_resources("two") == [Resource(D, "content")]
    assert await ns.content.list_statuses() == []


async def test_refs_of_two_namespaces_do_not_meet(world: World, ns: ScopedDatabase) -> None:
    other = world.scoped("other").content
    one, two = await ns.content.writer("r"), await other.writer("r")
    await one.write(b"1")
    assert (await other.status("r")).offset == 0
    with pytest.raises(Unavailable, match="ref r locked for"):
        await other.writer("r")
    await one.close()
    await two.close()


async def test_an_ingest_survives_a_restart(world: World) -> None:
    writer = await world.scoped().content.writer("r", total=len(DATA), expected=D)
    await writer.write(DATA[:4])
    await writer.close()
    await world.reopen()
    content = world.scoped().content
    status = await content.status("r")
    assert (status.ref, status.offset, status.total, status.expected) == ("r", 4, len(DATA), D)
    await world.collect()
    writer = await content.writer("r", total=len(DATA), expected=D)
    assert writer.status().offset == 4
    await writer.write(DATA[4:])
    await writer.commit(len(DATA), D, {})


async def test_backend_names_are_never_used_twice(world: World) -> None:
    names = set()
    for _ in range(3):
        writer = await world.scoped().content.writer("r")
        await writer.close()
        names |= set(world.blobs.ingests)
        await world.scoped().content.abort("r")
        await world.reopen()
    assert len(names) == 3


async def test_ingests_expire_unless_leased(
    world: World, ns: ScopedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ns.leases.create("l")
    for scoped, ref in ((ns, "goes"), (world.scoped(lease="l"), "stays")):
        writer = await scoped.content.writer(ref)
        await writer.write(DATA)
        await writer.close()
    assert await world.collect() == {}
    later = time.time_ns() + EXPIRY + 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert await world.collect() == {"ingest": 1}
    assert [status.ref for status in await ns.content.list_statuses()] == ["stays"]
    assert len(world.blobs.ingests) == 1
    await ns.leases.delete("l")
    assert await world.collect() == {"ingest": 1}
    assert world.blobs.ingests == {}


async def test_a_blob_without_entry_is_removed_after_a_crash(world: World) -> None:
    """The daemon dies between the backend's commit and its own."""

    def die() -> None:
        raise asyncio.CancelledError

    writer = await world.scoped().content.writer("r")
    await writer.write(DATA)
    with failpoints.armed("metadata.content.committed", die), pytest.raises(asyncio.CancelledError):
        await writer.commit(0, "", {})
    assert set(world.blobs.blobs) == {D}
    await world.reopen()
    await world.collect()
    assert world.blobs.blobs == {}


async def test_strange_blobs_and_ingests_go_at_the_first_collection(world: World) -> None:
    await put(world.blobs, DATA)
    await (await world.blobs.writer("nobody/1/r")).close()
    kept = await put(world.scoped().content, b"kept", "kept")
    await world.scoped().leases.create("l")
    await world.scoped().leases.add_resource("l", Resource(kept, "content"))
    await world.collect()
    assert set(world.blobs.blobs) == {kept}
    assert world.blobs.ingests == {}


async def test_what_is_announced_is_kept_for_the_ingest(world: World, ns: ScopedDatabase) -> None:
    """The blob's last namespace lets go of it while another's writer counts on it."""
    await put(ns.content, DATA)
    writer = await world.scoped("other").content.writer("r", expected=D)
    await ns.content.delete(D)
    await world.collect()
    await writer.commit(0, D, {})
    assert await get(world.scoped("other").content, D) == DATA


async def test_removal_and_adoption_take_turns(world: World, ns: ScopedDatabase) -> None:
    await put(ns.content, DATA)
    await ns.content.delete(D)
    other = world.scoped("other").content

    async def adopt() -> None:
        writer = await other.writer("r", expected=D)
        if writer.status().offset == 0:
            await writer.write(DATA)
        await writer.commit(len(DATA), D, {})

    await asyncio.gather(world.settled(), adopt(), world.settled())
    assert await get(other, D) == DATA
