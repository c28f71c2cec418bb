"""Diff (reference, services.md section 11, storage.md section 6, distribution.md section 4).

What exactly a layer holds, and that the original makes the same of it, is asked elsewhere
(``tests/interop/test_diff_like_containerd.py``).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from harness.contract import Case, Door, Refused, Served, World, answered, cases
from harness.images import LayerTar
from harness.records import (
    BAD_NAMESPACE,
    NO_NAMESPACE,
    TOO_LONG,
    TOO_LONG_TEXT,
    invalid,
    missing,
)

from cradled import digest
from cradled.api import content_pb2, events_pb2, leases_pb2
from cradled.api import diff_pb2 as pb
from cradled.api.types_pb2 import Descriptor, Mount
from cradled.api.wellknown_pb2 import Timestamp
from cradled.core import mount as core_mount
from cradled.core.diff import DiffOptions
from cradled.core.scope import Scope
from cradled.differs.ordered import OrderedDiffers
from cradled.differs.walking import WalkingDiffer
from cradled.proxies.diff import ProxyDiffer
from cradled.rpc.status import Code
from cradled.services.diff import DiffService
from cradled.workers.pool import Pool
from cradled.zygote.client import Zygote

# Each test starts a zygote and a worker: the way by a second server, a relay for Diff, is left out.
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.doors("inprocess", "grpc"),
]

OCI = "application/vnd.oci.image.layer.v1.tar"
FREE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
UNCOMPRESSED = "containerd.io/uncompressed"
X = digest.of(b"x")


@pytest.fixture
async def extra(world: World, directory: str) -> AsyncIterator[Sequence[Served]]:
    async with AsyncExitStack() as stack:
        zygote = Zygote()
        stack.push_async_callback(zygote.aclose)
        pool = Pool(zygote, directory, size=2)
        stack.push_async_callback(pool.aclose)
        yield [(pb.Diff, DiffService(world.db, OrderedDiffers([WalkingDiffer(pool)])))]


@pytest.fixture
def trees(directory: str) -> Path:
    """Two directories, ``left`` and ``right``, and one to apply to."""
    top = Path(directory) / "trees"
    for name in ("left", "right", "target"):
        (top / name).mkdir(parents=True)
    (top / "left/gone").touch()
    (top / "right/file").write_text("data")
    os.utime(top / "right/file", (1000, 1000))
    return top


def bind(path: Path, *options: str) -> Mount:
    return Mount(type="bind", source=str(path), options=["rbind", *options])


def tar() -> bytes:
    layer = LayerTar()
    data = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(100))
    layer.directory("d").add("d/file", data=data)
    return layer.bytes() + bytes(10240)  # padding counts


TAR = tar()
GZIP, ZSTD = gzip.compress(TAR), zstd.compress(TAR)


async def put(door: Door, data: bytes, lease: str = "") -> str:
    request = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, ref=digest.of(data), data=data
    )
    answer = await answered(door.stub(content_pb2.Content, lease=lease).write, [request])
    assert isinstance(answer, list), answer
    return digest.of(data)


def layer(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest.of(data), size=len(data))


PLAIN = pb.ApplyResponse(applied=layer(OCI, TAR))
NO_TAR = Refused(Code.UNKNOWN, re.compile("^archive/tar: invalid tar header"))


def no_processor(media_type: str) -> Refused:
    return missing(f"failed to get stream processor for {media_type}: no processor for media-type")


APPLIED = [
    (OCI, TAR), (f"{OCI}+gzip", GZIP), (f"{OCI}+zstd", ZSTD),
    (FREE, TAR), (f"{FREE}+gzip", GZIP), (f"{FREE}+zstd", ZSTD),
    (DOCKER, TAR), (DOCKER, GZIP), (DOCKER, ZSTD), (f"{DOCKER}.gzip", GZIP),
    (f"{DOCKER}.zstd", ZSTD), (FOREIGN, TAR), (FOREIGN, GZIP), (f"{FOREIGN}.gzip", GZIP),
    (f"{OCI}+gzip", ZSTD), (f"{OCI}+zstd", TAR),  # the first bytes tell, not the name
]  # fmt: skip


async def test_apply(door: Door, trees: Path) -> None:
    for data in (TAR, GZIP, ZSTD):
        await put(door, data)
    door.events()
    for number, (media_type, data) in enumerate(APPLIED):
        target = trees / str(number)
        target.mkdir()
        request = pb.ApplyRequest(diff=layer(media_type, data), mounts=[bind(target, "rw")])
        request.sync_fs = number == 0
        await Case("", request, PLAIN).ask(door.stub(pb.Diff).apply)
        assert (target / "d/file").stat().st_size == 3200
    assert door.told() == []


async def test_apply_what_is_no_layer(door: Door, trees: Path) -> None:
    for data in (TAR, GZIP, GZIP[:-20], b"x" * 2000):
        await put(door, data)
    for described, refusal in (
        (layer(OCI, GZIP), NO_TAR),
        (layer(f"{OCI}+gzip", b"x" * 2000), NO_TAR),
        (layer(f"{OCI}+gzip", GZIP[:-20]), Refused(Code.UNKNOWN, re.compile("^unexpected EOF"))),
        *((layer(media_type, TAR), no_processor(media_type))
          for media_type in (f"{OCI}+gzip+encrypted", f"{OCI}+encrypted", "text/plain", "")),
    ):  # fmt: skip
        request = pb.ApplyRequest(diff=described, mounts=[bind(trees / "target", "rw")])
        await Case("", request, refusal).ask(door.stub(pb.Diff).apply)


def missing_blob(name: str) -> Refused:
    return missing(f"failed to get reader from content store: content digest {name}")


@cases(
    Case("a missing blob", Descriptor(media_type=OCI, digest=X, size=1), missing_blob(X)),
    Case("a bad digest", Descriptor(media_type=OCI, digest="x"), missing_blob("x")),
    Case("nothing", Descriptor(), missing_blob("")),
)
async def test_apply_what_is_not_there(door: Door, trees: Path, case: Case) -> None:
    request = pb.ApplyRequest(diff=case.request, mounts=[bind(trees / "target", "rw")])
    await case._replace(request=request).ask(door.stub(pb.Diff).apply)


async def test_apply_to_what_cannot_be_mounted(door: Door, trees: Path) -> None:
    await put(door, TAR)
    request = pb.ApplyRequest(diff=layer(OCI, TAR), mounts=[bind(trees / "nowhere", "rw")])
    answer = await answered(door.stub(pb.Diff).apply, request)
    refusal = Refused(Code.UNKNOWN, re.compile("no such file or directory"))
    assert refusal.fits(answer, exact=False), answer


def made(trees: Path, **fields: Any) -> pb.DiffRequest:
    return pb.DiffRequest(
        left=[bind(trees / "left", "ro")], right=[bind(trees / "right", "rw")], **fields
    )


async def blob(door: Door, name: str) -> bytes:
    content = door.stub(content_pb2.Content)
    request = content_pb2.ReadContentRequest(digest=name)
    return b"".join([part.data async for part in content.read(request)])


async def labels(door: Door, name: str) -> dict[str, str]:
    content = door.stub(content_pb2.Content)
    return dict((await content.info(content_pb2.InfoRequest(digest=name))).info.labels)


async def ingests(door: Door) -> list[str]:
    content = door.stub(content_pb2.Content)
    found = await content.list_statuses(content_pb2.ListStatusesRequest())
    return [status.ref for status in found.statuses]


@cases(
    Case("none", "", gzip.decompress, f"{OCI}+gzip"),
    Case("gzip", f"{OCI}+gzip", gzip.decompress, f"{OCI}+gzip"),
    Case("zstd", f"{OCI}+zstd", zstd.decompress, f"{OCI}+zstd"),
    Case("tar", OCI, bytes, OCI),
)
async def test_diff(door: Door, trees: Path, case: Case) -> None:
    request = made(trees, media_type=case.request, labels={"a": "1", "b": ""})
    descriptor = (await door.stub(pb.Diff).diff(request)).diff
    data = await blob(door, descriptor.digest)
    assert descriptor == layer(case.then, data)
    plain = case.answer(data)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert {info.name: info.mtime for info in archive} == {"file": 1000, ".wh.gone": 0}
    diff_id = {} if case.then == OCI else {UNCOMPRESSED: digest.of(plain)}
    assert await labels(door, descriptor.digest) == {"a": "1", **diff_id}
    assert await ingests(door) == []
    event = events_pb2.ContentCreate(digest=descriptor.digest, size=len(data))
    assert door.told() == [("ns", "/content/create", event)]
    # Once more: it is there, with its labels as they are.
    request.labels["a"] = "2"
    assert (await door.stub(pb.Diff).diff(request)).diff == descriptor
    assert await labels(door, descriptor.digest) == {"a": "1", **diff_id}
    assert door.told() == []


async def test_diff_that_is_refused(door: Door, trees: Path) -> None:
    for media_type in (DOCKER, f"{OCI}+lz4", FREE, "x"):
        text = f"unsupported diff media type: {media_type}: not implemented"
        request = made(trees, media_type=media_type)
        await Case("", request, Refused(Code.UNIMPLEMENTED, text)).ask(door.stub(pb.Diff).diff)
    refusal = invalid(f"failed to commit: info.Labels: {TOO_LONG_TEXT}")
    await Case("", made(trees, labels=TOO_LONG), refusal).ask(door.stub(pb.Diff).diff)
    for side in ("left", "right"):
        request = made(trees)
        getattr(request, side)[0].source = str(trees / "nowhere")
        text = "^failed to write compressed diff: .*no such file or directory$"
        refusal = Refused(Code.UNKNOWN, re.compile(text))
        await Case("", request, refusal).ask(door.stub(pb.Diff).diff)
    assert await ingests(door) == []
    assert door.told() == []


async def test_times_after_the_source_date_epoch(door: Door, trees: Path) -> None:
    epoch = Timestamp(seconds=500, nanos=999_999_999)
    request = made(trees, media_type=OCI, source_date_epoch=epoch)
    data = await blob(door, (await door.stub(pb.Diff).diff(request)).diff.digest)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {info.name: info.mtime for info in archive} == {"file": 500, ".wh.gone": 0}


async def test_of_nothing(door: Door) -> None:
    descriptor = (await door.stub(pb.Diff).diff(pb.DiffRequest(media_type=OCI))).diff
    assert await blob(door, descriptor.digest) == bytes(1024)


async def test_a_ref(door: Door, trees: Path) -> None:
    """One that somebody writes to is locked, and what it has stays."""
    content = door.stub(content_pb2.Content)
    write = content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="mine", data=b"other")
    async with content.write() as stream:
        await stream.send(write)
        await stream.recv()
        answer = await answered(door.stub(pb.Diff).diff, made(trees, ref="mine"))
        refusal = Refused(Code.UNAVAILABLE, re.compile("^failed to open writer: ref mine locked"))
        assert refusal.fits(answer, exact=False), answer
    assert await ingests(door) == ["mine"]


async def test_a_lease_gets_the_blob(door: Door, trees: Path) -> None:
    leases = door.stub(leases_pb2.Leases)
    await leases.create(leases_pb2.CreateRequest(id="l"))
    descriptor = (await door.stub(pb.Diff, lease="l").diff(made(trees))).diff
    held = await leases.list_resources(leases_pb2.ListResourcesRequest(id="l"))
    assert [(r.type, r.id) for r in held.resources] == [("content", descriptor.digest)]
    answer = await answered(door.stub(pb.Diff, lease="x").diff, made(trees))
    refusal = missing("failed to open writer: lease does not exist")
    assert refusal.fits(answer, exact=False), answer


async def test_a_namespace_is_needed(door: Door) -> None:
    for namespace, refusal in (("", NO_NAMESPACE), ("a b", BAD_NAMESPACE)):
        diff = door.stub(pb.Diff, namespace)
        for rpc, request in ((diff.diff, pb.DiffRequest()),
                             (diff.apply, pb.ApplyRequest(diff=layer(OCI, TAR)))):  # fmt: skip
            assert refusal.fits(await answered(rpc, request), exact=False)


async def test_by_the_proxy_of_a_differ(door: Door, trees: Path) -> None:
    """As the library and proxy plugins ask."""
    differ = ProxyDiffer(door.transport, Scope("ns"))
    left, right, target = (
        [core_mount.Mount("bind", str(trees / name), ("rbind",))]
        for name in ("left", "right", "target")
    )
    options = DiffOptions(OCI, "ref", {"a": "1"}, source_date_epoch=77 * 10**9)
    descriptor = await differ.compare(left, right, None, options)
    assert await labels(door, descriptor.digest) == {"a": "1"}
    applied = await differ.apply(descriptor, None, target)
    assert applied == descriptor
    assert os.stat(trees / "target/file").st_mtime == 77
