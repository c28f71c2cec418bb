"""Async. The image records of a server."""

from __future__ import annotations

from collections.abc import Sequence

from cradled.api import images_pb2 as pb
from cradled.api.wellknown_pb2 import FieldMask, Timestamp
from cradled.convert import images as convert
from cradled.convert.values import descriptor_to_proto, timestamp
from cradled.core.images import Image
from cradled.core.scope import Scope
from cradled.core.values import Descriptor
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxyImages:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Images, metadata(scope))

    async def get(self, name: str, /) -> Image:
        response = await self._stub.get(pb.GetImageRequest(name=name))
        return convert.from_proto(response.image)

    async def list(self, filters: Sequence[str] = (), /) -> list[Image]:
        response = await self._stub.list(pb.ListImagesRequest(filters=filters))
        return [convert.from_proto(image) for image in response.images]

    async def create(self, image: Image, /, source_date_epoch: int | None = None) -> Image:
        """``source_date_epoch`` (ns) dates the record instead of now."""
        request = pb.CreateImageRequest(
            image=convert.to_proto(image), source_date_epoch=_optional(source_date_epoch)
        )
        return convert.from_proto((await self._stub.create(request)).image)

    async def update(
        self,
        image: Image,
        fieldpaths: Sequence[str] = (),
        /,
        source_date_epoch: int | None = None,
    ) -> Image:
        """``source_date_epoch`` as in ``create``."""
        request = pb.UpdateImageRequest(
            image=convert.to_proto(image),
            update_mask=FieldMask(paths=fieldpaths),
            source_date_epoch=_optional(source_date_epoch),
        )
        return convert.from_proto((await self._stub.update(request)).image)

    async def delete(
        self, name: str, /, *, target: Descriptor | None = None, sync: bool = False
    ) -> None:
        """``sync`` waits for one full garbage collection."""
        expected = None if target is None else descriptor_to_proto(target)
        await self._stub.delete(pb.DeleteImageRequest(name=name, sync=sync, target=expected))


def _optional(nanoseconds: int | None) -> Timestamp | None:
    return None if nanoseconds is None else timestamp(nanoseconds)
