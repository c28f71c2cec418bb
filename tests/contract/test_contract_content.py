"""Content (reference, services.md section 6)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from harness.contract import Case, Door, Refused, answered, cases
from harness.records import (
    BAD_NAMESPACE,
    LONGEST,
    NO_NAMESPACE,
    TOO_LONG,
    TOO_LONG_TEXT,
    exists,
    invalid,
    missing,
)

from cradled import digest, errors
from cradled.api import content_pb2 as pb
from cradled.api import events_pb2, leases_pb2, namespaces_pb2
from cradled.api.wellknown_pb2 import Empty, FieldMask
from cradled.rpc.status import Code
from cradled.rpc.stub import ClientStream

DATA = b"some data"
D, X, EMPTY = digest.of(DATA), digest.of(b"x"), digest.EMPTY
STAT, WRITE, COMMIT = pb.STAT, pb.WRITE, pb.COMMIT

# (digest, why it is none)
BAD_DIGESTS = [
    ("", "invalid checksum digest format"),
    ("x", "invalid checksum digest format"),
    ("sha256:" + "A" * 64, "invalid checksum digest format"),
    ("sha256:abc", "invalid checksum digest length"),
    ("md5:" + "0" * 32, "unsupported digest algorithm"),
]  # fmt: skip


def say(action: Any = WRITE, **fields: Any) -> pb.WriteContentRequest:
    return pb.WriteContentRequest(action=action, **fields)


class Reply(NamedTuple):
    """What is answered in a write stream, times aside; ``of`` is the data written so far."""

    action: Any
    of: bytes
    offset: int
    total: int = 0
    algorithm: str = "sha256"

    def fits(self, reply: pb.WriteContentResponse) -> bool:
        told = reply.action, reply.digest, reply.offset, reply.total
        wanted = self.action, digest.of(self.of, self.algorithm), self.offset, self.total
        return told == wanted and reply.HasField("started_at") == reply.HasField("updated_at")


class Replies(list[Reply]):
    """All of a stream; the last may come once more (the original repeats it)."""

    def __call__(self, answer: Any) -> bool:
        if not isinstance(answer, list):
            return False
        if len(answer) == len(self) + 1 and answer[-1] == answer[-2]:
            answer = answer[:-1]
        return len(answer) == len(self) and all(
            wanted.fits(reply) for wanted, reply in zip(self, answer, strict=True)
        )


async def put(
    door: Door, data: bytes = DATA, namespace: str = "ns", lease: str = "", **labels: str
) -> str:
    """Have a blob in a namespace."""
    content = door.stub(pb.Content, namespace, lease)
    name = digest.of(data)
    request = say(COMMIT, ref=f"put {name}", data=data, labels=labels)
    answer = await answered(content.write, [request])
    assert answer[-1].digest == name
    return name


async def stored(door: Door, namespace: str = "ns", *filters: str) -> dict[str, pb.Info]:
    pages = door.stub(pb.Content, namespace).list(pb.ListContentRequest(filters=filters))
    return {info.digest: info async for page in pages for info in page.info}


def topics(door: Door) -> list[str]:
    return [topic for _, topic, _ in door.told()]


async def ingests(door: Door, *filters: str) -> list[tuple[str, int]]:
    request = pb.ListStatusesRequest(filters=filters)
    found = await door.stub(pb.Content).list_statuses(request)
    return [(status.ref, status.offset) for status in found.statuses]


async def begun(door: Door, ref: str, data: bytes, **fields: Any) -> None:
    """Leave an ingest behind."""
    await answered(door.stub(pb.Content).write, [say(ref=ref, data=data, **fields)])


def info(data: bytes = DATA, **labels: str) -> pb.Info:
    return pb.Info(digest=digest.of(data), size=len(data), labels=labels)


@cases(
    Case("one that is there", pb.InfoRequest(digest=D), pb.InfoResponse(info=info(a="1"))),
    Case("a missing one", pb.InfoRequest(digest=X), missing(f"content digest {X}")),
    Case("another namespace's", pb.InfoRequest(digest=digest.of(b"other")),
         missing(f"content digest {digest.of(b'other')}")),
)  # fmt: skip
async def test_info(door: Door, case: Case) -> None:
    await put(door, a="1")
    await put(door, b"other", "others")
    await case.ask(door.stub(pb.Content).info)


def update(
    *paths: str, name: str = D, size: int = 0, labels: dict[str, str] | None = None
) -> pb.UpdateRequest:
    changed = pb.Info(digest=name, size=size, labels=labels or {})
    return pb.UpdateRequest(info=changed, update_mask=FieldMask(paths=paths))


def updated(**labels: str) -> pb.UpdateResponse:
    return pb.UpdateResponse(info=info(**labels))


@cases(
    Case("without a mask all labels", update(labels={"c": "3", "e": ""}, size=99), updated(c="3")),
    Case("without mask and labels", update(), updated()),
    Case("labels", update("labels", labels={"c": "3"}), updated(c="3")),
    Case("one label", update("labels.a", labels={"a": "9", "c": "3"}), updated(a="9", b="2")),
    Case("a new label", update("labels.c", labels={"c": "3"}), updated(a="1", b="2", c="3")),
    Case("a label away", update("labels.a"), updated(b="2")),
    Case("an empty label", update("labels.a", labels={"a": ""}), updated(b="2")),
    Case("a label with dots", update("labels.x.y/z", labels={"x.y/z": "1"}),
         updated(a="1", b="2", **{"x.y/z": "1"})),
    Case("two paths", update("labels.a", "labels.b", labels={"b": "9"}), updated(b="9")),
    Case("the longest label", update(labels=LONGEST), updated(**LONGEST)),
    Case("a label too long", update(labels=TOO_LONG), invalid(f"info.Labels: {TOO_LONG_TEXT}")),
    *(Case(f"path {path}", update("labels", path),
           invalid(f'cannot update "{path}" field on content info "{D}"'))
      for path in ("size", "digest", "created_at", "label", "")),
    Case("a missing one", update(name=X), missing(f"content digest {X}")),
    Case("a bad digest", update(name="x"), invalid('"x" failed validation')),
    Case("no info", pb.UpdateRequest(), invalid('"" failed validation')),
)  # fmt: skip
async def test_update(door: Door, case: Case) -> None:
    await put(door, a="1", b="2")
    before = (await stored(door))[D]
    await case.ask(door.stub(pb.Content).update)
    after = (await stored(door))[D]
    if isinstance(case.answer, Refused):
        assert after == before
    else:
        assert after.labels == case.answer.info.labels
        assert after.created_at == before.created_at
        assert after.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()
    assert topics(door) == ["/content/create"]


LISTED = {b"one": {"a": "1"}, b"two": {"a": "2", "b": "x"}, b"three": {}}


def listed(*data: bytes) -> Any:
    def fits(pages: Any) -> bool:
        found = {info.digest for page in pages for info in page.info}
        return found == {digest.of(one) for one in data} and len(pages) == bool(data)

    return fits


def listing(*filters: str) -> pb.ListContentRequest:
    return pb.ListContentRequest(filters=filters)


@cases(
    Case("all", listing(), listed(*LISTED)),
    Case("by digest", listing(f"digest=={digest.of(b'one')}"), listed(b"one")),
    Case("by its beginning", listing("digest~=^sha256:"), listed(*LISTED)),
    Case("by a label", listing("labels.a"), listed(b"one", b"two")),
    Case("by a label's value", listing("labels.a==2"), listed(b"two")),
    Case("any of the filters", listing("labels.a==1", "labels.b==x"), listed(b"one", b"two")),
    Case("all of a filter", listing("labels.a==1,labels.b==x"), listed()),
    Case("size is no field", listing("size==3"), listed()),
    Case("nothing", listing("labels.c"), listed()),
    Case("a bad filter", listing("=="),
         Refused(Code.INVALID_ARGUMENT, re.compile("^filters: parse error: .*invalid argument$"))),
)  # fmt: skip
async def test_list(door: Door, case: Case) -> None:
    for data, labels in LISTED.items():
        await put(door, data, **labels)
    await put(door, b"other", "others", a="1")
    await case.ask(door.stub(pb.Content).list)


async def test_a_list_comes_in_pages_of_a_hundred(door: Door) -> None:
    await asyncio.gather(*(put(door, str(number).encode()) for number in range(201)))
    pages = await answered(door.stub(pb.Content).list, listing())
    assert [len(page.info) for page in pages] == [100, 100, 1]
    names = [info.digest for page in pages for info in page.info]
    assert names == sorted(names)
    assert len(set(names)) == 201


@cases(
    Case("one that is there", pb.DeleteContentRequest(digest=D), Empty()),
    Case("a missing one", pb.DeleteContentRequest(digest=X), missing(f"content digest {X}")),
)  # fmt: skip
async def test_delete(door: Door, case: Case) -> None:
    await put(door)
    await put(door, namespace="others")
    door.events()
    await case.ask(door.stub(pb.Content).delete)
    gone = case.answer == Empty()
    assert (D in await stored(door)) is not gone
    assert D in await stored(door, "others")
    assert topics(door) == (["/content/delete"] if gone else [])


LONG = bytes(range(256)) * 10_000  # 2.5 MiB
L = digest.of(LONG)


def reads(offset: int, end: int | None = None) -> Any:
    """The data from one place of ``LONG`` to another, in chunks counted from the first."""

    def fits(answer: Any) -> bool:
        at, wanted = 0, LONG[offset:end]
        for part in answer:
            if part.offset != at or not 0 < len(part.data) <= 1 << 20:
                return False
            at += len(part.data)
        return b"".join(part.data for part in answer) == wanted

    return fits


def read(offset: int = 0, size: int = 0, name: str = L) -> pb.ReadContentRequest:
    return pb.ReadContentRequest(digest=name, offset=offset, size=size)


@cases(
    Case("all", read(), reads(0)),
    Case("from an offset", read(1_500_000), reads(1_500_000)),
    Case("a part", read(100, 50), reads(100, 150)),
    Case("a part of more than one chunk", read(3, 2_000_000), reads(3, 2_000_003)),
    Case("past the end", read(2_559_990, 100), reads(2_559_990)),
    Case("a size below 0", read(5, -1), reads(5)),
    Case("an offset below 0", read(-7, 10), reads(0, 10)),
    Case("at the end", read(len(LONG)), []),
    Case("behind the end", read(len(LONG) + 1),
         Refused(Code.OUT_OF_RANGE, re.compile(f"^read past object length {len(LONG)} bytes"))),
    Case("an empty blob", read(name=EMPTY), []),
    Case("behind an empty blob", read(1, name=EMPTY),
         Refused(Code.OUT_OF_RANGE, re.compile("^read past object length 0 bytes"))),
    Case("a missing one", read(name=X), missing(f"content digest {X}")),
)  # fmt: skip
async def test_read(door: Door, case: Case) -> None:
    await put(door, LONG)
    await put(door, b"")
    await case.ask(door.stub(pb.Content).read)


def total_of(reply: Any) -> tuple[str, int, int]:
    return reply.status.ref, reply.status.offset, reply.status.total


@cases(
    Case("begun", pb.StatusRequest(ref="r"), lambda a: total_of(a) == ("r", 5, 9)),
    Case("a missing one", pb.StatusRequest(ref="x"),
         Refused(Code.NOT_FOUND, re.compile('^could not get status for ref "x": .*reference x'))),
    Case("none", pb.StatusRequest(),
         Refused(Code.NOT_FOUND, re.compile('^could not get status for ref "": .*reference'))),
)  # fmt: skip
async def test_status(door: Door, case: Case) -> None:
    await begun(door, "r", b"begun", total=9)
    answer = await case.ask(door.stub(pb.Content).status)
    if not isinstance(case.answer, Refused):
        status = answer.status
        started, changed = status.started_at.ToNanoseconds(), status.updated_at.ToNanoseconds()
        assert 0 < started <= changed


@cases(
    Case("all", (), [("a", 1), ("b", 2), ("c/d", 0)]),
    Case("by ref", ("ref==b",), [("b", 2)]),
    Case("by its beginning", ("ref~=^c/", "ref==a"), [("a", 1), ("c/d", 0)]),
    Case("nothing", ("ref==x",), []),
)
async def test_list_statuses(door: Door, case: Case) -> None:
    for ref, data in (("a", b"1"), ("b", b"22"), ("c/d", b"")):
        await begun(door, ref, data)
    await answered(door.stub(pb.Content, "others").write, [say(ref="e", data=b"5")])
    assert sorted(await ingests(door, *case.request)) == case.answer


async def test_statuses_with_a_bad_filter(door: Door) -> None:
    request = pb.ListStatusesRequest(filters=["=="])
    answer = await answered(door.stub(pb.Content).list_statuses, request)
    assert answer.code == Code.INVALID_ARGUMENT


@cases(
    Case("one that is there", pb.AbortRequest(ref="r"), Empty()),
    Case("a missing one", pb.AbortRequest(ref="x"), missing("reference x")),
    Case("none", pb.AbortRequest(), missing("reference ")),
)
async def test_abort(door: Door, case: Case) -> None:
    await begun(door, "r", b"begun")
    await case.ask(door.stub(pb.Content).abort)
    assert await ingests(door) == ([] if case.answer == Empty() else [("r", 5)])


@cases(
    Case("one message is enough", [say(COMMIT, ref="r", data=DATA)],
         Replies([Reply(COMMIT, DATA, 9)])),
    Case("as clients write", [
        say(STAT, ref="r", total=9, expected=D), say(offset=0, data=b"some "),
        say(offset=5, data=b"data"), say(COMMIT, offset=9, total=9, expected=D),
    ], Replies([Reply(STAT, b"", 0, 9), Reply(WRITE, b"some ", 5, 9), Reply(WRITE, DATA, 9, 9),
                Reply(COMMIT, DATA, 9, 9)])),
    Case("nothing", [], Refused(Code.UNKNOWN, "EOF")),
    Case("no ref", [say(data=b"a")],
         Refused(Code.INVALID_ARGUMENT, re.compile("^first message must have a reference"))),
    Case("an empty blob", [say(COMMIT, ref="r")], Replies([Reply(COMMIT, b"", 0)])),
    Case("the closing of the stream without a commit", [say(ref="r", data=b"a")],
         Replies([Reply(WRITE, b"a", 1)])),
    Case("later refs are ignored", [say(ref="r", data=b"a"), say(ref="other", offset=1, data=b"b")],
         Replies([Reply(WRITE, b"a", 1), Reply(WRITE, b"ab", 2)])),
    Case("a wrong offset", [say(ref="r", data=b"abc"), say(offset=2, data=b"x")],
         Refused(Code.OUT_OF_RANGE, re.compile("^write @2 must occur at current offset 3"))),
    Case("a wrong offset at first", [say(ref="r", offset=5, data=b"x")],
         Refused(Code.OUT_OF_RANGE, re.compile("^write @5 must occur at current offset 0"))),
    Case("offset 0 starts again", [say(ref="r", data=b"abc"), say(data=b"x"), say(STAT)],
         Replies([Reply(WRITE, b"abc", 3), Reply(WRITE, b"x", 1), Reply(STAT, b"x", 1)])),
    Case("offset 0 without data too", [say(ref="r", data=b"abc"), say(), say(STAT)],
         Replies([Reply(WRITE, b"abc", 3), Reply(WRITE, b"", 0), Reply(STAT, b"", 0)])),
    Case("what follows a commit is not read",
         [say(COMMIT, ref="r", data=b"a"), say(data=b"x")], Replies([Reply(COMMIT, b"a", 1)])),
    Case("sha512", [say(COMMIT, ref="r", data=b"q", expected=digest.of(b"q", "sha512"))],
         Replies([Reply(COMMIT, b"q", 1, algorithm="sha512")])),
    Case("sha384", [say(COMMIT, ref="r", data=b"q", expected=digest.of(b"q", "sha384"))],
         Replies([Reply(COMMIT, b"q", 1, algorithm="sha384")])),
    Case("sha512 told late",
         [say(ref="r", data=b"q"), say(COMMIT, offset=1, expected=digest.of(b"q", "sha512"))],
         Replies([Reply(WRITE, b"q", 1), Reply(COMMIT, b"q", 1, algorithm="sha512")])),
)  # fmt: skip
async def test_write(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Content).write)


@cases(
    Case("a wrong size", say(COMMIT, data=b"abc", total=9),
         Refused(Code.FAILED_PRECONDITION,
                 '"r" failed size validation: 3 != 9: failed precondition')),
    Case("a wrong digest", say(COMMIT, data=b"abc", expected=X),
         Refused(Code.FAILED_PRECONDITION,
                 f"unexpected commit digest {digest.of(b'abc')}, expected {X}: "
                 "failed precondition")),
    Case("both: the size is told", say(COMMIT, data=b"abc", total=9, expected=X),
         Refused(Code.FAILED_PRECONDITION, re.compile("^\"r\" failed size validation: 3 != 9"))),
    Case("a label too long", say(COMMIT, data=b"abc", labels=TOO_LONG),
         invalid(f"info.Labels: {TOO_LONG_TEXT}")),
)  # fmt: skip
async def test_a_commit_that_fails_leaves_the_ingest(door: Door, case: Case) -> None:
    content = door.stub(pb.Content)
    case.request.ref = "r"
    await case._replace(request=[case.request]).ask(content.write)
    assert await ingests(door) == [("r", 3)]
    assert await stored(door) == {}
    again = [say(STAT, ref="r"), say(COMMIT, offset=3, total=3, expected=digest.of(b"abc"))]
    replies = await answered(content.write, again)
    assert (replies[0].offset, replies[0].digest) == (3, digest.of(b"abc"))
    assert list(await stored(door)) == [digest.of(b"abc")]
    assert await ingests(door) == []


async def test_a_commit_of_what_the_namespace_has(door: Door) -> None:
    content = door.stub(pb.Content)
    await put(door, a="1")
    door.events()
    answer = await answered(
        content.write, [say(ref="r", data=DATA), say(COMMIT, offset=9, labels={"b": "2"})]
    )
    assert exists(f"content {D}").fits(answer, door.name == "inprocess")
    assert await ingests(door) == []
    assert (await stored(door))[D].labels == {"a": "1"}
    replies = await answered(content.write, [say(STAT, ref="r")])
    assert replies[0].offset == 0
    assert topics(door) == []


async def test_opening_for_what_the_namespace_has(door: Door) -> None:
    await put(door)
    content = door.stub(pb.Content)
    answer = await answered(content.write, [say(STAT, ref="r", expected=D)])
    assert exists(f"content {D}").fits(answer, door.name == "inprocess")
    assert await ingests(door) == []


async def test_what_was_brought_meanwhile(door: Door) -> None:
    """A digest told after the opening is looked for first: the ingest is given up."""
    content = door.stub(pb.Content)
    async with content.write() as stream:
        await ask(stream, say(ref="r", data=b"some"))
        await put(door)
        await stream.send(say(offset=4, data=b" data", expected=D))
        with pytest.raises(errors.AlreadyExists) as caught:
            await stream.recv()
    assert caught.value.what == f"blob with expected digest {D} exists"
    assert await ingests(door) == []


async def ask(stream: ClientStream, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
    await stream.send(request)
    reply = await stream.recv()
    assert reply is not None
    return reply


async def test_a_ref_has_one_writer(door: Door) -> None:
    content = door.stub(pb.Content)
    async with content.write() as stream:
        await ask(stream, say(ref="r", data=b"first"))
        locked = await answered(content.write, [say(STAT, ref="r")])
        pattern = r"^ref r locked for [0-9.]+m?s \(since [^)]+\): unavailable$"
        assert Refused(Code.UNAVAILABLE, re.compile(pattern)).fits(locked, exact=False)
        others = await answered(door.stub(pb.Content, "others").write, [say(STAT, ref="r")])
        assert others[0].offset == 0
        await stream.done()
        assert [reply async for reply in stream][:-1] == []
    replies = await answered(content.write, [say(STAT, ref="r")])
    assert (replies[0].offset, replies[0].digest) == (5, digest.of(b"first"))


async def test_an_ingest_goes_on_where_it_was(door: Door) -> None:
    content = door.stub(pb.Content)
    await begun(door, "r", b"some", total=9)
    first = await answered(content.write, [say(STAT, ref="r", total=9)])
    assert (first[0].offset, first[0].total) == (4, 9)
    assert first[0].started_at.ToNanoseconds() > 0
    again = await answered(
        content.write, [say(STAT, ref="r"), say(COMMIT, offset=4, data=b" data")]
    )
    assert again[0].total == 0
    assert again[-1].digest == D
    # With another total it starts anew.
    await begun(door, "r", b"some", total=9)
    anew = await answered(content.write, [say(STAT, ref="r", total=10)])
    assert (anew[0].offset, anew[0].total) == (0, 10)


async def test_an_ingest_is_dropped_under_its_writer(door: Door) -> None:
    content = door.stub(pb.Content)
    async with content.write() as stream:
        await ask(stream, say(ref="r", data=b"first"))
        await content.abort(pb.AbortRequest(ref="r"))
        assert await ingests(door) == []


async def test_events(door: Door) -> None:
    await put(door)
    await door.stub(pb.Content).delete(pb.DeleteContentRequest(digest=D))
    assert door.told() == [
        ("ns", "/content/create", events_pb2.ContentCreate(digest=D, size=len(DATA))),
        ("ns", "/content/delete", events_pb2.ContentDelete(digest=D)),
    ]


async def test_labels_of_a_commit(door: Door) -> None:
    await put(door, a="1", b="")
    kept = (await stored(door))[D]
    assert kept.labels == {"a": "1"}
    assert kept.created_at == kept.updated_at
    assert kept.size == len(DATA)


class TestLeases:
    async def held(self, door: Door) -> set[tuple[str, str]]:
        leases = door.stub(leases_pb2.Leases)
        found = await leases.list_resources(leases_pb2.ListResourcesRequest(id="l"))
        return {(resource.type, resource.id) for resource in found.resources}

    @pytest.fixture
    async def leased(self, door: Door) -> Any:
        await door.stub(leases_pb2.Leases).create(leases_pb2.CreateRequest(id="l"))
        return door.stub(pb.Content, lease="l")

    async def test_what_is_written_joins(self, door: Door, leased: Any) -> None:
        async with leased.write() as stream:
            await ask(stream, say(ref="r", data=DATA))
            assert await self.held(door) == {("ingests", "r")}
            await ask(stream, say(COMMIT, offset=9))
        assert await self.held(door) == {("content", D)}
        await leased.delete(pb.DeleteContentRequest(digest=D))
        assert await self.held(door) == set()

    async def test_what_was_there_joins_too(self, door: Door, leased: Any) -> None:
        await put(door)
        assert isinstance(await answered(leased.write, [say(ref="r", expected=D)]), Refused)
        assert await self.held(door) == {("content", D)}
        await put(door, b"more")
        await answered(leased.write, [say(COMMIT, ref="r", data=b"more")])
        assert await self.held(door) == {("content", D), ("content", digest.of(b"more"))}

    async def test_what_is_dropped_leaves(self, door: Door, leased: Any) -> None:
        await answered(leased.write, [say(ref="r", data=b"a")])
        await leased.abort(pb.AbortRequest(ref="r"))
        assert await self.held(door) == set()

    async def test_a_lease_that_is_not_there(self, door: Door) -> None:
        content = door.stub(pb.Content, lease="x")
        answer = await answered(content.write, [say(COMMIT, ref="r", data=DATA)])
        assert missing("lease does not exist").fits(answer, door.name == "inprocess")
        assert await stored(door) == {}


class TestSharing:
    """A blob that another namespace has."""

    COMPLETE = Replies([Reply(STAT, DATA, 9, 9), Reply(COMMIT, DATA, 9, 9)])
    AT_ONCE = (say(STAT, ref="r", expected=D, total=9), say(COMMIT, offset=9, total=9))

    async def test_it_is_adopted(self, door: Door) -> None:
        await put(door, namespace="others", a="1")
        door.events()
        answer = await answered(door.stub(pb.Content).write, list(self.AT_ONCE))
        assert self.COMPLETE(answer), answer
        assert (await stored(door))[D].labels == {}
        assert await ingests(door) == []
        assert topics(door) == ["/content/create"]

    async def test_what_is_written_instead_is_taken(self, door: Door) -> None:
        await put(door, namespace="others")
        written = [say(ref="r", expected=D, data=DATA), say(COMMIT, offset=9)]
        answer = await answered(door.stub(pb.Content).write, written)
        assert Replies([Reply(WRITE, DATA, 9), Reply(COMMIT, DATA, 9)])(answer), answer

    async def test_without_the_digest_nothing_is_shared(self, door: Door) -> None:
        await put(door, namespace="others")
        answer = await answered(door.stub(pb.Content).write, [say(STAT, ref="r", total=9)])
        assert Replies([Reply(STAT, b"", 0, 9)])(answer)

    @pytest.mark.stores(isolated=True)
    async def test_isolated_it_must_be_sent(self, door: Door) -> None:
        await put(door, namespace="others")
        content = door.stub(pb.Content)
        answer = await answered(content.write, [self.AT_ONCE[0]])
        assert Replies([Reply(STAT, b"", 0, 9)])(answer), answer
        sent = [say(ref="r", data=DATA, expected=D), say(COMMIT, offset=9)]
        assert (await answered(content.write, sent))[-1].digest == D

    @pytest.mark.stores(isolated=True)
    async def test_isolated_but_shareable(self, door: Door) -> None:
        shareable = {"containerd.io/namespace.shareable": "true"}
        namespace = namespaces_pb2.Namespace(name="others", labels=shareable)
        request = namespaces_pb2.CreateNamespaceRequest(namespace=namespace)
        await door.stub(namespaces_pb2.Namespaces, "").create(request)
        await put(door, namespace="others")
        answer = await answered(door.stub(pb.Content).write, list(self.AT_ONCE))
        assert self.COMPLETE(answer), answer


@pytest.mark.parametrize(("bad", "why"), BAD_DIGESTS, ids=[bad[:10] for bad, _ in BAD_DIGESTS])
async def test_bad_digests(door: Door, bad: str, why: str) -> None:
    content = door.stub(pb.Content)
    for rpc, request, text in (
        (content.info, pb.InfoRequest(digest=bad), f'"{bad}" failed validation'),
        (content.update, update(name=bad), f'"{bad}" failed validation'),
        (content.delete, pb.DeleteContentRequest(digest=bad), why),
        (content.read, read(name=bad), f"{bad}: {why}"),
    ):
        await Case("", request, invalid(text)).ask(rpc)
    if bad:
        refused = Refused(Code.INVALID_ARGUMENT, re.compile(f"{why}|failed validation"))
        await Case("", [say(ref="r", expected=bad)], refused).ask(content.write)
        late = [say(ref="r", data=b"a"), say(COMMIT, offset=1, expected=bad)]
        await Case("", late, refused).ask(content.write)
        assert await ingests(door) == [("r", 1)]


REQUESTS: Sequence[tuple[str, Any]] = (
    ("info", pb.InfoRequest(digest=D)),
    ("update", update()),
    ("list", listing()),
    ("delete", pb.DeleteContentRequest(digest=D)),
    ("read", read(name=D)),
    ("status", pb.StatusRequest(ref="r")),
    ("list_statuses", pb.ListStatusesRequest()),
    ("abort", pb.AbortRequest(ref="r")),
    ("write", [say(ref="r", data=b"a")]),
)


@pytest.mark.parametrize(("rpc", "request_"), REQUESTS, ids=[rpc for rpc, _ in REQUESTS])
async def test_a_namespace_is_needed(door: Door, rpc: str, request_: Any) -> None:
    prefix = 'could not get status for ref "r": ' if rpc == "status" else ""
    answer = await answered(getattr(door.stub(pb.Content, ""), rpc), request_)
    assert answer == NO_NAMESPACE._replace(text=f"{prefix}{NO_NAMESPACE.text}")
    answer = await answered(getattr(door.stub(pb.Content, "a b"), rpc), request_)
    assert answer.code == BAD_NAMESPACE.code
