"""Async. Snapshots of every snapshotter, chosen by name in each request."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cradled.api import snapshots_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import mounts
from cradled.convert import snapshots as convert
from cradled.core.mount import Mount
from cradled.core.snapshots import Snapshotter
from cradled.errors import InvalidArgument, Unimplemented
from cradled.metadata.db import Database
from cradled.rpc.call import Call

PAGE = 100
"""Infos in one message of List."""


class SnapshotsService:
    def __init__(self, db: Database) -> None:
        self._db = db

    def _snapshotter(self, call: Call, name: str) -> Snapshotter:
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        return self._db.scoped(call.scope()).snapshots(name)

    async def prepare(
        self, call: Call, request: pb.PrepareSnapshotRequest
    ) -> pb.PrepareSnapshotResponse:
        snapshotter = self._snapshotter(call, request.snapshotter)
        made = await snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=map(mounts.to_proto, made))

    async def view(self, call: Call, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        snapshotter = self._snapshotter(call, request.snapshotter)
        made = await snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=map(mounts.to_proto, made))

    async def mounts(self, call: Call, request: pb.MountsRequest) -> pb.MountsResponse:
        found: list[Mount] = await self._snapshotter(call, request.snapshotter).mounts(request.key)
        return pb.MountsResponse(mounts=map(mounts.to_proto, found))

    async def commit(self, call: Call, request: pb.CommitSnapshotRequest) -> Empty:
        snapshotter = self._snapshotter(call, request.snapshotter)
        await snapshotter.commit(
            request.name, request.key, dict(request.labels), parent=request.parent
        )
        return Empty()

    async def remove(self, call: Call, request: pb.RemoveSnapshotRequest) -> Empty:
        await self._snapshotter(call, request.snapshotter).remove(request.key)
        return Empty()

    async def stat(self, call: Call, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        info = await self._snapshotter(call, request.snapshotter).stat(request.key)
        return pb.StatSnapshotResponse(info=convert.to_proto(info))

    async def update(
        self, call: Call, request: pb.UpdateSnapshotRequest
    ) -> pb.UpdateSnapshotResponse:
        snapshotter = self._snapshotter(call, request.snapshotter)
        info = convert.from_proto(request.info)
        updated = await snapshotter.update(info, list(request.update_mask.paths))
        return pb.UpdateSnapshotResponse(info=convert.to_proto(updated))

    async def list(
        self, call: Call, request: pb.ListSnapshotsRequest
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        snapshotter = self._snapshotter(call, request.snapshotter)
        page: list[pb.Info] = []
        async for info in snapshotter.walk(list(request.filters)):
            page.append(convert.to_proto(info))
            if len(page) == PAGE:
                yield pb.ListSnapshotsResponse(info=page)
                page = []
        if page:
            yield pb.ListSnapshotsResponse(info=page)

    async def usage(self, call: Call, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = await self._snapshotter(call, request.snapshotter).usage(request.key)
        return convert.usage_to_proto(usage)

    async def cleanup(self, call: Call, request: pb.CleanupRequest) -> Empty:
        """Hidden behind the namespaced store, as in the original; garbage collection cleans up."""
        self._snapshotter(call, request.snapshotter)
        raise Unimplemented("snapshotter does not implement Cleanup method")
