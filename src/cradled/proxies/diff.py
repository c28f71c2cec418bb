"""Async. The differ of a server, as a ``core.diff.Applier`` and a ``core.diff.Comparer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cradled.api import diff_pb2 as pb
from cradled.convert import mounts as mounts_convert
from cradled.convert.values import (
    any_to_proto,
    descriptor_from_proto,
    descriptor_to_proto,
    timestamp,
)
from cradled.core.content import ContentStore, Reader
from cradled.core.diff import DiffOptions
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.values import AnyValue, Descriptor
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxyDiffer:
    """The server reads and writes blobs in its own content store, whatever stores are given."""

    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._transport = transport
        self._stub = Stub(transport, pb.Diff, metadata(scope))

    def bind(self, scope: Scope, /) -> ProxyDiffer:
        """The same on behalf of another scope."""
        return ProxyDiffer(self._transport, scope)

    async def apply(
        self,
        layer: Descriptor,
        blob: Reader | None,
        mounts: Sequence[Mount],
        /,
        *,
        payloads: Mapping[str, AnyValue] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        request = pb.ApplyRequest(
            diff=descriptor_to_proto(layer),
            mounts=map(mounts_convert.to_proto, mounts),
            payloads={key: any_to_proto(value) for key, value in (payloads or {}).items()},
            sync_fs=sync_fs,
        )
        return descriptor_from_proto((await self._stub.apply(request)).applied)

    async def compare(
        self,
        left: Sequence[Mount],
        right: Sequence[Mount],
        content: ContentStore | None,
        options: DiffOptions,
        /,
    ) -> Descriptor:
        epoch = options.source_date_epoch
        request = pb.DiffRequest(
            left=map(mounts_convert.to_proto, left),
            right=map(mounts_convert.to_proto, right),
            media_type=options.media_type,
            ref=options.ref,
            labels=options.labels,
            source_date_epoch=None if epoch is None else timestamp(epoch),
        )
        return descriptor_from_proto((await self._stub.diff(request)).diff)
