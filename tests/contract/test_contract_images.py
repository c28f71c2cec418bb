"""Images (reference, services.md section 5)."""

from __future__ import annotations

from typing import Any

from harness.contract import Case, Door, Refused, ask_all, cases
from harness.records import (
    KEYLESS,
    KEYLESS_TEXT,
    LONGEST,
    TOO_LONG,
    TOO_LONG_TEXT,
    exists,
    image,
    invalid,
    missing,
)

from cradled import digest
from cradled.api import content_pb2, leases_pb2
from cradled.api import images_pb2 as pb
from cradled.api.types_pb2 import Descriptor
from cradled.api.wellknown_pb2 import Empty, FieldMask, Timestamp
from cradled.rpc.status import Code

EPOCH = Timestamp(seconds=77, nanos=5)
X, Y = digest.of(b"x"), digest.of(b"y")
EXPIRES = {"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}

OLD = image("old", labels={"a": "1", "b": "2"}, digest=X, annotations={"p": "1", "q": "2"})
NEW = image(
    "old",
    labels={"b": "9", "c": "3"},
    digest=Y,
    size=7,
    media_type="m",
    annotations={"q": "9", "r": "3"},
)


def create(made: pb.Image, epoch: Timestamp | None = None) -> pb.CreateImageRequest:
    return pb.CreateImageRequest(image=made, source_date_epoch=epoch)


def update(made: pb.Image, *paths: str, epoch: Timestamp | None = None) -> pb.UpdateImageRequest:
    mask = FieldMask(paths=paths)
    return pb.UpdateImageRequest(image=made, update_mask=mask, source_date_epoch=epoch)


def delete(name: str, target: str = "", sync: bool = False) -> pb.DeleteImageRequest:
    wanted = Descriptor(digest=target) if target else None
    return pb.DeleteImageRequest(name=name, target=wanted, sync=sync)


def changed(labels: dict[str, str] | None = None, **target: Any) -> pb.Image:
    """``OLD`` with other labels or other parts of its target."""
    made = pb.Image()
    made.CopyFrom(OLD)
    if labels is not None:
        made.ClearField("labels")
        made.labels.update(labels)
    for name in target:
        made.target.ClearField(name)
    made.target.MergeFrom(Descriptor(**target))
    return made


async def stored(door: Door, namespace: str = "ns") -> list[pb.Image]:
    response = await door.stub(pb.Images, namespace).list(pb.ListImagesRequest())
    return list(response.images)


# (what is wrong with it, the image, the text)
BAD = [
    *(
        (f"digest {bad!r}", image("old", digest=bad), f'target.Digest "{bad}" invalid: {why}')
        for bad, why in (
            ("", "invalid checksum digest format"),
            ("x", "invalid checksum digest format"),
            (":", "invalid checksum digest format"),
            ("sha256:", "invalid checksum digest format"),
            ("sha256:" + "G" * 64, "invalid checksum digest format"),
            ("sha256:" + "A" * 64, "invalid checksum digest format"),
            ("sha256:abc", "invalid checksum digest length"),
            ("sha512:" + "0" * 64, "invalid checksum digest length"),
            ("md5:" + "0" * 32, "unsupported digest algorithm"),
        )
    ),
    ("size 0", image("old", size=0), "target.Size must be greater than zero"),
    ("a negative size", image("old", size=-1), "target.Size must be greater than zero"),
    ("no media type", image("old", media_type=""), "target.MediaType must be set"),
    ("a label without key", image("old", labels=KEYLESS), f"image.Labels: {KEYLESS_TEXT}"),
    ("a label too long", image("old", labels=TOO_LONG), f"image.Labels: {TOO_LONG_TEXT}"),
    (
        "all of it: the label is told first",
        image("old", labels=TOO_LONG, digest="x", size=0, media_type=""),
        f"image.Labels: {TOO_LONG_TEXT}",
    ),
    (
        "all of the target: the digest is told first",
        image("old", digest="x", size=0, media_type=""),
        'target.Digest "x" invalid: invalid checksum digest format',
    ),
]
NAMELESS = Refused(Code.INVALID_ARGUMENT, "Image.Name required")


@cases(
    Case("with everything", create(OLD), OLD),
    Case(
        "empty labels and annotations are not kept",
        create(changed({"a": "", "b": "2"}, annotations={"p": "", "q": "2"})),
        changed({"b": "2"}, annotations={"q": "2"}),
    ),
    Case("the longest label", create(image("i", labels=LONGEST)), image("i", labels=LONGEST)),
    Case("a name of any kind", create(image("é x/y@:\t")), image("é x/y@:\t")),
    Case("sha512", create(image("i", digest=digest.of(b"", "sha512"))), None),
    Case("sha384", create(image("i", digest=digest.of(b"", "sha384"))), None),
)
async def test_create(door: Door, case: Case) -> None:
    expected = pb.CreateImageResponse(image=case.answer or case.request.image)
    made = (await case._replace(answer=expected).ask(door.stub(pb.Images).create)).image
    assert await stored(door) == [made]
    assert made.created_at == made.updated_at
    assert made.created_at.seconds > EPOCH.seconds
    event = pb.ImageCreate(name=made.name, labels=made.labels)
    assert door.told() == [("ns", "/images/create", event)]


CREATION_REFUSED = (
    *(Case(what, create(bad), invalid(text)) for what, bad, text in BAD),
    Case("no name", create(image("")), NAMELESS),
    Case("no image at all", pb.CreateImageRequest(), NAMELESS),
)


async def test_create_refused(door: Door) -> None:
    await ask_all(door.stub(pb.Images).create, CREATION_REFUSED)
    assert (await stored(door), door.told()) == ([], [])


@cases(Case("the same again", create(OLD), exists('image "old"')))
async def test_create_twice(door: Door, case: Case) -> None:
    images = door.stub(pb.Images)
    made = (await images.create(create(NEW))).image
    door.events()
    await case.ask(images.create)
    assert (await stored(door), door.told()) == ([made], [])
    await door.stub(pb.Images, "other").create(case.request)


@cases(
    Case("a date", EPOCH, EPOCH.ToNanoseconds()),
    Case("the very first", Timestamp(), 0),
)
async def test_source_date_epoch(door: Door, case: Case) -> None:
    """It is when the image was created and updated; the creation time stays with an update."""
    images = door.stub(pb.Images)
    made = (await images.create(create(OLD, case.request))).image
    assert made.created_at.ToNanoseconds() == case.answer
    assert made.updated_at.ToNanoseconds() == case.answer
    later = Timestamp(seconds=99)
    made = (await images.update(update(NEW, epoch=later))).image
    assert made.created_at.ToNanoseconds() == case.answer
    assert made.updated_at == later
    made = (await images.update(update(NEW, "labels", epoch=case.request))).image
    assert made.updated_at.ToNanoseconds() == case.answer
    assert await stored(door) == [made]


async def test_times_of_a_request_are_ignored(door: Door) -> None:
    images = door.stub(pb.Images)
    dated = image("old", created_at=EPOCH, updated_at=EPOCH)
    made = (await images.create(create(dated))).image
    assert made.created_at.seconds > EPOCH.seconds
    updated = (await images.update(update(dated))).image
    assert updated.created_at == made.created_at
    assert updated.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()


@cases(
    Case("no mask replaces everything", update(NEW), NEW),
    Case(
        "no mask, empty labels and annotations",
        update(changed({"a": "", "c": "3"}, annotations={"p": "", "r": "3"})),
        changed({"c": "3"}, annotations={"r": "3"}),
    ),
    Case("labels", update(NEW, "labels"), changed({"b": "9", "c": "3"})),
    Case("labels, none", update(image("old"), "labels"), changed({})),
    Case("one label", update(NEW, "labels.b"), changed({"a": "1", "b": "9"})),
    Case("a new label", update(NEW, "labels.c"), changed({"a": "1", "b": "2", "c": "3"})),
    Case("a label goes", update(NEW, "labels.a"), changed({"b": "2"})),
    Case("a label that never was", update(NEW, "labels.zz"), OLD),
    Case("no label", update(NEW, "labels."), OLD),
    Case(
        "target",
        update(NEW, "target"),
        image(
            "old",
            labels=dict(OLD.labels),
            digest=Y,
            size=7,
            media_type="m",
            annotations={"q": "9", "r": "3"},
        ),
    ),
    Case("annotations", update(NEW, "annotations"), changed(annotations={"q": "9", "r": "3"})),
    Case("one annotation", update(NEW, "annotations.q"), changed(annotations={"p": "1", "q": "9"})),
    Case(
        "a new annotation",
        update(NEW, "annotations.r"),
        changed(annotations={"p": "1", "q": "2", "r": "3"}),
    ),
    Case("an annotation goes", update(NEW, "annotations.p"), changed(annotations={"q": "2"})),
    Case(
        "several",
        update(NEW, "labels", "annotations.q"),
        changed({"b": "9", "c": "3"}, annotations={"p": "1", "q": "9"}),
    ),
    Case(
        "what the mask leaves out need not be valid",
        update(image("old", digest="", size=0, labels={"x": "1"}), "labels"),
        changed({"x": "1"}),
    ),
)
async def test_update(door: Door, case: Case) -> None:
    images = door.stub(pb.Images)
    old = (await images.create(create(OLD))).image
    door.events()
    expected = pb.UpdateImageResponse(image=case.answer)
    updated = (await case._replace(answer=expected).ask(images.update)).image
    assert await stored(door) == [updated]
    assert updated.created_at == old.created_at
    assert updated.updated_at.ToNanoseconds() > old.updated_at.ToNanoseconds()
    event = pb.ImageUpdate(name="old", labels=updated.labels)
    assert door.told() == [("ns", "/images/update", event)]


BAD_PATHS = ("name", "target.digest", "target.annotations", "created_at", "labelsx", "label.a", "")


UPDATE_REFUSED = (
    Case("no name", update(image("")), NAMELESS),
    Case("a missing one", update(image("x")), missing('image "x"')),
    Case("a missing one, whatever the mask", update(image("x"), "bad"), missing('image "x"')),
    Case("a missing one, whatever is in it", update(image("x", size=0)), missing('image "x"')),
    *(
        Case(
            f"mask {path!r}",
            update(NEW, "labels", path),
            invalid(f'cannot update "{path}" field on image "old"'),
        )
        for path in BAD_PATHS
    ),
    *(Case(what, update(bad), invalid(text)) for what, bad, text in BAD),
    Case(
        "a bad target by mask",
        update(image("old", size=0), "target"),
        invalid("target.Size must be greater than zero"),
    ),
    Case(
        "a bad label by mask",
        update(image("old", labels=TOO_LONG), f"labels.{next(iter(TOO_LONG))}"),
        invalid(f"image.Labels: {TOO_LONG_TEXT}"),
    ),
)


async def test_update_refused(door: Door) -> None:
    images = door.stub(pb.Images)
    old = (await images.create(create(OLD))).image
    door.events()
    await ask_all(images.update, UPDATE_REFUSED)
    assert (await stored(door), door.told()) == ([old], [])


GOT = (
    Case("one that is there", pb.GetImageRequest(name="old"), pb.GetImageResponse(image=OLD)),
    Case("a missing one", pb.GetImageRequest(name="x"), missing('image "x"')),
    Case("no name", pb.GetImageRequest(), missing('image ""')),
)


async def test_get(door: Door) -> None:
    await door.stub(pb.Images).create(create(OLD))
    await ask_all(door.stub(pb.Images).get, GOT)
    absent = Case("", pb.GetImageRequest(name="old"), missing('image "old"'))
    await absent.ask(door.stub(pb.Images, "two").get)


@cases(
    Case("one that is there", delete("old"), Empty()),
    Case("with the target it has", delete("old", X), Empty()),
    Case("a target without digest", pb.DeleteImageRequest(name="old", target={"size": 9}), Empty()),
    Case("and collect", delete("old", sync=True), Empty()),
    Case(
        "with another target",
        delete("old", Y),
        missing(f'image "old" has target {X}, not {Y}'),
    ),
    Case("a missing one", delete("x"), missing('image "x"')),
    Case("a missing one with a target", delete("x", X), missing('image "x"')),
    Case("no name", delete(""), missing('image ""')),
)
async def test_delete(door: Door, case: Case) -> None:
    images = door.stub(pb.Images)
    old = (await images.create(create(OLD))).image
    await door.stub(pb.Images, "other").create(create(OLD))
    door.events()
    answer = await case.ask(images.delete)
    if isinstance(answer, Refused):
        assert (await stored(door), door.told()) == ([old], [])
    else:
        event = pb.ImageDelete(name="old")
        assert (await stored(door), door.told()) == ([], [("ns", "/images/delete", event)])
    assert len(await stored(door, "other")) == 1


async def put_blob(door: Door, data: bytes) -> None:
    """A blob that no lease keeps."""
    request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", data=data)
    async with door.stub(content_pb2.Content).write() as stream:
        await stream.send(request)
        await stream.done()
        assert [response async for response in stream]


async def blobs(door: Door) -> list[str]:
    pages = door.stub(content_pb2.Content).list(content_pb2.ListContentRequest())
    return [info.digest async for page in pages for info in page.info]


async def test_sync_waits_for_a_collection(door: Door) -> None:
    """Deleting an image leaves its content; the collection that ``sync`` waits for takes it."""
    images = door.stub(pb.Images)
    await put_blob(door, b"x")
    for name in ("one", "two"):
        await images.create(create(image(name, digest=X)))
    await images.delete(delete("one", sync=True))
    assert await blobs(door) == [X]
    await images.delete(delete("two"))
    assert await blobs(door) == [X]
    await images.create(create(image("three", digest=Y)))
    await images.delete(delete("three", sync=True))
    assert await blobs(door) == []


async def test_collected_images_are_told_of(door: Door) -> None:
    """An image that has expired goes with the next collection, and its event says so."""
    past = {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"}
    images = door.stub(pb.Images)
    for name, labels in (("gone", past), ("kept", EXPIRES), ("asked", {})):
        await images.create(create(image(name, labels=labels)))
    door.events()
    await images.delete(delete("asked", sync=True))
    assert [one.name for one in await stored(door)] == ["kept"]
    events = [
        ("ns", "/images/delete", pb.ImageDelete(name="asked")),
        ("ns", "/images/delete", pb.ImageDelete(name="gone")),
    ]
    assert door.told() == events


LISTED = {
    "a": image("a", labels={"k": "v"}, annotations={"x.y/z": "1"}),
    "b": image("b", digest=Y, media_type="m", labels={"containerd.io/x": "1"}),
    "c": image("c", annotations={"n": "2"}),
}

FILTERS = [
    ("nothing", [], "abc"),
    ("an empty one", ["", "name==a"], "abc"),
    ("name", ["name==b"], "b"),
    ("names", ["name==c", "name==a"], "ac"),
    ("not a name", ["name!=b"], "ac"),
    ("a pattern of names", ["name~=[bc]"], "bc"),
    ("a name is there", ["name"], "abc"),
    ("target.digest", [f"target.digest=={Y}"], "b"),
    ("a pattern of digests", ["target.digest~=^sha256"], "abc"),
    ("target.mediatype", ["target.mediatype==m"], "b"),
    ("the target alone is no field", ["target"], ""),
    ("nor is its size", ["target.size==1"], ""),
    ("a label", ["labels.k==v"], "a"),
    ("a label, quoted", ['labels."containerd.io/x"'], "b"),
    ("an annotation", ["annotations.n==2"], "c"),
    ("an annotation, quoted", ['annotations."x.y/z"==1'], "a"),
    ("all annotations are no field", ["annotations"], ""),
    ("both", [f"name!=a,target.digest=={X}"], "c"),
    ("no such field", ["id==a"], ""),
]


LISTS = (
    *(
        Case(
            what,
            pb.ListImagesRequest(filters=filters),
            pb.ListImagesResponse(images=[LISTED[name] for name in found]),
        )
        for what, filters, found in FILTERS
    ),
    Case(
        "a filter that is none",
        pb.ListImagesRequest(filters=["annotations.x.y/z"]),
        invalid("filters: parse error: [annotations.x.y >|/|< z]: quoted literal not terminated"),
    ),
)


async def test_list(door: Door) -> None:
    images = door.stub(pb.Images)
    for name in "cab":
        await images.create(create(LISTED[name]))
    await door.stub(pb.Images, "other").create(create(OLD))
    await ask_all(images.list, LISTS)


async def held(door: Door, lease: str) -> list[tuple[str, str]]:
    request = leases_pb2.ListResourcesRequest(id=lease)
    response = await door.stub(leases_pb2.Leases).list_resources(request)
    return [(resource.type, resource.id) for resource in response.resources]


async def test_what_expires_joins_the_lease(door: Door) -> None:
    await door.stub(leases_pb2.Leases).create(leases_pb2.CreateRequest(id="l"))
    images = door.stub(pb.Images, lease="l")
    await images.create(create(image("plain")))
    await images.create(create(image("expires", labels=EXPIRES)))
    assert await held(door, "l") == [("images", "expires")]
    await images.update(update(image("plain", labels=EXPIRES), "labels"))
    assert await held(door, "l") == [("images", "expires"), ("images", "plain")]
    await images.delete(delete("expires"))
    assert await held(door, "l") == [("images", "plain")]


@cases(
    Case("that expires", create(image("i", labels=EXPIRES)), missing("lease does not exist"), []),
    Case("that does not", create(OLD), pb.CreateImageResponse(image=OLD), ["old"]),
)
async def test_an_image_under_an_unknown_lease(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Images, lease="absent").create)
    assert [one.name for one in await stored(door)] == case.then
