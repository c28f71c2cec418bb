"""The real services over a real database, reached in process and over a socket."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cradled.aio import threads
from cradled.api import (
    containers_pb2,
    content_pb2,
    events_service_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    streaming_pb2,
    version_pb2,
)
from cradled.content.local import open_store
from cradled.core.scope import Scope
from cradled.events.exchange import Exchange
from cradled.events.journal import Journal
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database
from cradled.rpc.grpc_client import connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Transport
from cradled.services.containers import ContainersService
from cradled.services.content import ContentService
from cradled.services.events import EventsService
from cradled.services.images import ImagesService
from cradled.services.leases import LeasesService
from cradled.services.namespaces import NamespacesService
from cradled.services.snapshots import SnapshotsService
from cradled.services.streaming import StreamingService
from cradled.services.version import VersionService
from cradled.streaming.manager import Streams
from cradled.testing.memory_snapshots import MemorySnapshotter

SCOPE = Scope("test")


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    """``router``, and what lies behind it."""
    content = await open_store(str(tmp_path / "content"))
    snapshotters = {"memory": MemorySnapshotter()}
    journal = Journal(str(tmp_path / "state"))
    exchange = Exchange(journal)
    db = await Database.open(
        str(tmp_path / "meta.db"), content=content, snapshotters=snapshotters, publisher=exchange
    )
    scheduler, streams, router = Scheduler(db), Streams(), Router()
    router.add(containers_pb2.Containers, ContainersService(db))
    router.add(content_pb2.Content, ContentService(db))
    router.add(events_service_pb2.Events, EventsService(exchange))
    router.add(images_pb2.Images, ImagesService(db, scheduler))
    router.add(leases_pb2.Leases, LeasesService(db, scheduler))
    router.add(namespaces_pb2.Namespaces, NamespacesService(db))
    router.add(snapshots_pb2.Snapshots, SnapshotsService(db))
    router.add(streaming_pb2.Streaming, StreamingService(streams))
    router.add(version_pb2.Version, VersionService("v0", "r0"))
    try:
        yield SimpleNamespace(router=router, streams=streams, db=db)
    finally:
        await scheduler.aclose()
        await db.aclose()
        journal.close()
        threads.close()


@pytest.fixture(params=["inprocess", "grpc"])
async def transport(
    request: pytest.FixtureRequest, backend: SimpleNamespace, tmp_path: Path
) -> AsyncIterator[Transport]:
    if request.param == "inprocess":
        yield InProcess(backend.router)
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        sock.listen()
        server = GrpcServer(backend.router)
        await server.serve(sock)
        async with await connect(str(tmp_path / "sock")) as channel:
            yield channel
        await server.stop(0)
