"""Transfer and Streaming as a client sees them, over the in-process transport."""

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from harness.transfers import HOST, ExtractingApplier, Layout, layers, pieces, tar

from cradled.api import streaming_pb2, transfer_pb2
from cradled.api import transfer_types_pb2 as types_pb
from cradled.api.wellknown_pb2 import Any
from cradled.convert import transfer as convert
from cradled.core.scope import Scope
from cradled.core.transfer import ExtraReference, ImageDestination, Progress, Unpack
from cradled.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from cradled.metadata.db import Database
from cradled.oci import image as oci
from cradled.proxies.streaming import ProxyStreams, send_bytes
from cradled.proxies.transfer import ProxyTransfer
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.services.streaming import StreamingService
from cradled.services.transfer import TransferService
from cradled.streaming.manager import Streams
from cradled.transfer.service import Transfers
from cradled.transfer.unpack import Unpacker

SCOPE = Scope("test")
IMPORT = types_pb.ImageImportStream
EXPORT = types_pb.ImageExportStream
STORE = types_pb.ImageStore
BASE = ImageDestination(extra_references=(ExtraReference("base", True, True),))


@pytest.fixture
def transport(db: Database) -> InProcess:
    streams = Streams()
    router = Router()
    router.add(streaming_pb2.Streaming, StreamingService(streams))
    applier = ExtractingApplier()
    unpacker = Unpacker(applier, apart=applier, rebasing=("overlayfs",))
    service = TransferService(db, streams, Transfers(unpacker))
    router.add(transfer_pb2.Transfer, service)
    return InProcess(router)


def layout(name: str = "x.io/x:1") -> Layout:
    made = Layout()
    made.manifests.append(made.image(layers(3), annotations={oci.IMAGE_NAME: name}))
    return made


def packed(message: IMPORT | EXPORT | STORE) -> Any:
    url = f"types.googleapis.com/{message.DESCRIPTOR.full_name}"
    return Any(type_url=url, value=message.SerializeToString())


async def transfer(
    transport: InProcess, source: IMPORT | STORE, destination: EXPORT | STORE, **options: str
) -> None:
    request = transfer_pb2.TransferRequest(
        source=packed(source), destination=packed(destination), options=options
    )
    stub = Stub(transport, transfer_pb2.Transfer, (("containerd-namespace", "test"),))
    await stub.transfer(request)


async def test_import_with_progress(transport: InProcess, db: Database) -> None:
    said: list[Progress] = []
    unpack = Unpack(f"linux/{HOST.architecture}", "overlayfs")
    await ProxyTransfer(transport, SCOPE).import_archive(
        pieces(layout().archive()), replace(BASE, unpacks=(unpack,)), said.append
    )
    stores = db.scoped(SCOPE)
    assert [image.name for image in await stores.images.list()] == ["x.io/x:1"]
    events = [step.event for step in said]
    assert events[0] == "Importing"
    assert events[-2:] == ["saved", "Completed import"]
    assert events.count("extracted") == 3
    assert next(step.name for step in said if step.event == "saved") == "x.io/x:1"
    assert len([info async for info in stores.snapshots("overlayfs").walk()]) == 3
    assert await stores.leases.list() == []


async def test_a_lease_of_the_caller_is_used(transport: InProcess, db: Database) -> None:
    await db.scoped(SCOPE).leases.create("mine", {})
    leased = ProxyTransfer(transport, Scope("test", "mine"))
    await leased.import_archive(pieces(layout().archive()), BASE)
    held = await db.scoped(SCOPE).leases.list_resources("mine")
    digests = {resource.id for resource in held if resource.type == "content"}
    assert digests >= set(layout().blobs)


async def test_a_bad_archive_is_told_and_the_stream_ends(
    transport: InProcess, db: Database
) -> None:
    with pytest.raises(InvalidArgument, match="image archive"):
        await ProxyTransfer(transport, SCOPE).import_archive(pieces(b"nonsense" * 2_000_000), BASE)
    assert await db.scoped(SCOPE).leases.list() == []


async def exported(transport: InProcess, source: STORE, **options: object) -> dict[str, bytes]:
    streams = ProxyStreams(transport, SCOPE)
    async with streams.open("export") as (name, stream):
        running = asyncio.ensure_future(
            transfer(transport, source, EXPORT(stream=name, **options))  # type: ignore[arg-type]
        )
        await stream.send(convert.window_to_any(100_000))
        data = b""
        async for message in stream:
            data += convert.data_from_any(message)
            with contextlib.suppress(FailedPrecondition):  # the call has ended
                await stream.send(convert.window_to_any(32768))
        await running
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = (member for member in archive if member.isreg())
        return {m.name: archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]


async def test_what_was_exported_can_be_imported(transport: InProcess, db: Database) -> None:
    proxy = ProxyTransfer(transport, SCOPE)
    made = layout()
    await proxy.import_archive(pieces(made.archive()), BASE)
    files = await exported(transport, STORE(name="x.io/x:1"))
    assert set(files) == {
        "oci-layout",
        "index.json",
        "manifest.json",
        *("blobs/" + digest.replace(":", "/") for digest in made.blobs),
    }
    for digest, data in made.blobs.items():
        assert files["blobs/" + digest.replace(":", "/")] == data
    entry = oci.index(files["index.json"]).manifests[0]
    assert entry.annotations == {oci.IMAGE_NAME: "x.io/x:1", oci.REF_NAME: "1"}
    assert b'"RepoTags":["x.io/x:1"]' in files["manifest.json"]
    other = ProxyTransfer(transport, Scope("other"))
    del files["index.json"]
    with pytest.raises(InvalidArgument, match=r"missing index\.json"):
        await other.import_archive(pieces(tar(files)), BASE)
    del files["oci-layout"]  # leaves what docker reads of it
    await other.import_archive(pieces(tar(files)), BASE)
    images = db.scoped(Scope("other")).images
    assert [image.name for image in await images.list()] == ["x.io/x:1"]


async def test_export_of_what_is_not_there(transport: InProcess) -> None:
    streams = ProxyStreams(transport, SCOPE)
    async with streams.open("export") as (name, _stream):
        with pytest.raises(NotFound, match='image "x"'):
            await transfer(transport, STORE(name="x"), EXPORT(stream=name))


async def test_tag(transport: InProcess, db: Database) -> None:
    await ProxyTransfer(transport, SCOPE).import_archive(pieces(layout().archive()), BASE)
    for _ in range(2):
        await transfer(transport, STORE(name="x.io/x:1"), STORE(name="y.io/y:2"))
    images = db.scoped(SCOPE).images
    target = (await images.get("x.io/x:1")).target
    assert (await images.get("y.io/y:2")).target == target


async def test_echo(transport: InProcess) -> None:
    data = bytes(range(256)) * 2000
    streams = ProxyStreams(transport, SCOPE)
    async with streams.open("in") as (source, sender), streams.open("out") as (target, stream):
        running = asyncio.ensure_future(
            transfer(transport, IMPORT(stream=source), EXPORT(stream=target))
        )
        feeding = asyncio.ensure_future(send_bytes(sender, pieces(data)))
        await stream.send(convert.window_to_any(1 << 20))
        got = b"".join([convert.data_from_any(message) async for message in stream])
        await asyncio.gather(running, feeding)
    assert got == data


@pytest.mark.parametrize(
    ("source", "destination", "error", "text"),
    [
        (IMPORT(stream="x"), STORE(), NotFound, 'stream "x"'),
        (STORE(name="x"), STORE(name="y"), NotFound, 'image "x"'),
        (STORE(), IMPORT(), Unimplemented, "method Transfer not implemented for types.google"),
        (types_pb.OCIRegistry(), STORE(), Unimplemented, "OCIRegistry to types.googleapis.com"),
    ],
)
async def test_what_cannot_be(
    transport: InProcess,
    source: IMPORT | STORE,
    destination: STORE,
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        await transfer(transport, source, destination)


async def test_an_unknown_progress_stream(transport: InProcess) -> None:
    with pytest.raises(NotFound, match='stream "p"'):
        await transfer(transport, STORE(name="x"), STORE(name="y"), progress_stream="p")


async def test_streams_need_names(transport: InProcess) -> None:
    stub = Stub(transport, streaming_pb2.Streaming, (("containerd-namespace", "test"),))

    async def first(message: Any) -> object:
        async with stub.stream() as stream:
            await stream.send(message)
            return await stream.recv()

    with pytest.raises(InvalidArgument, match="StreamInit"):
        await first(packed(STORE()))


async def test_stream_names_are_taken_once(transport: InProcess) -> None:
    stub = Stub(transport, streaming_pb2.Streaming, (("containerd-namespace", "test"),))
    init = streaming_pb2.StreamInit(id="one").SerializeToString()
    message = Any(type_url=streaming_pb2.StreamInit.DESCRIPTOR.full_name, value=init)
    async with stub.stream() as stream:
        await stream.send(message)
        assert (await stream.recv()).type_url == "google.protobuf.Empty"
        async with stub.stream() as second:
            await second.send(message)
            with pytest.raises(AlreadyExists):
                await second.recv()
        await stream.done()
        stream.cancel()


async def test_a_client_that_leaves_ends_its_transfer(transport: InProcess, db: Database) -> None:
    async def endless() -> AsyncIterator[bytes]:
        archive = layout().archive()
        yield archive[:5000]
        arrived.set()
        await asyncio.Event().wait()

    arrived = asyncio.Event()
    running = asyncio.ensure_future(ProxyTransfer(transport, SCOPE).import_archive(endless(), BASE))
    await arrived.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    stores = db.scoped(SCOPE)
    while await stores.leases.list():  # noqa: ASYNC110 - the server's side ends on its own
        await asyncio.sleep(0)
    assert await stores.content.list_statuses() == []
