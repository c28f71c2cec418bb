"""Async. A snapshotter of a server, as a ``core.snapshots.Snapshotter``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from cradled.api import snapshots_pb2 as pb
from cradled.api.types_pb2 import Mount as MountMessage
from cradled.api.wellknown_pb2 import FieldMask
from cradled.convert import mounts
from cradled.convert import snapshots as convert
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.snapshots import SnapshotInfo, Usage
from cradled.core.values import Labels
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxySnapshotter:
    def __init__(self, transport: Transport, scope: Scope, name: str) -> None:
        self._transport = transport
        self._stub = Stub(transport, pb.Snapshots, metadata(scope))
        self._name = name

    def bind(self, scope: Scope, /) -> ProxySnapshotter:
        """The same on behalf of another scope."""
        return ProxySnapshotter(self._transport, scope, self._name)

    async def stat(self, key: str, /) -> SnapshotInfo:
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=key)
        return convert.from_proto((await self._stub.stat(request)).info)

    async def update(self, info: SnapshotInfo, fieldpaths: Sequence[str] = (), /) -> SnapshotInfo:
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=convert.to_proto(info),
            update_mask=FieldMask(paths=fieldpaths),
        )
        return convert.from_proto((await self._stub.update(request)).info)

    async def usage(self, key: str, /) -> Usage:
        request = pb.UsageRequest(snapshotter=self._name, key=key)
        return convert.usage_from_proto(await self._stub.usage(request))

    async def mounts(self, key: str, /) -> list[Mount]:
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return _mounts((await self._stub.mounts(request)).mounts)

    async def prepare(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return _mounts((await self._stub.prepare(request)).mounts)

    async def view(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        request = pb.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return _mounts((await self._stub.view(request)).mounts)

    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        await self._stub.commit(
            pb.CommitSnapshotRequest(
                snapshotter=self._name, name=name, key=key, labels=labels, parent=parent
            )
        )

    async def remove(self, key: str, /) -> None:
        await self._stub.remove(pb.RemoveSnapshotRequest(snapshotter=self._name, key=key))

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[SnapshotInfo]:
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        async for response in self._stub.list(request):
            for info in response.info:
                yield convert.from_proto(info)

    async def cleanup(self) -> None:
        await self._stub.cleanup(pb.CleanupRequest(snapshotter=self._name))


def _mounts(messages: Iterable[MountMessage]) -> list[Mount]:
    return [mounts.from_proto(message) for message in messages]
