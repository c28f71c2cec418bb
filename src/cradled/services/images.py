"""Async. Image records. Reads answer with stored bytes, not with messages made anew."""

from __future__ import annotations

from cradled.api import images_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import images as convert
from cradled.convert.encoded import embed
from cradled.convert.values import nanoseconds
from cradled.errors import InvalidArgument
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database
from cradled.rpc.call import Call
from cradled.rpc.service import Encoded


class ImagesService:
    def __init__(self, db: Database, scheduler: Scheduler) -> None:
        self._db = db
        self._scheduler = scheduler

    async def get(self, call: Call, request: pb.GetImageRequest) -> Encoded:
        images = self._db.scoped(call.scope()).images
        return Encoded(embed(await images.get_record(request.name)))

    async def list(self, call: Call, request: pb.ListImagesRequest) -> Encoded:
        images = self._db.scoped(call.scope()).images
        return Encoded(*map(embed, await images.list_records(list(request.filters))))

    async def create(self, call: Call, request: pb.CreateImageRequest) -> pb.CreateImageResponse:
        _require_name(request.image)
        images = self._db.scoped(call.scope()).images
        created = await images.create(
            convert.from_proto(request.image),
            source_date_epoch=_epoch(request),
        )
        return pb.CreateImageResponse(image=convert.to_proto(created))

    async def update(self, call: Call, request: pb.UpdateImageRequest) -> pb.UpdateImageResponse:
        _require_name(request.image)
        images = self._db.scoped(call.scope()).images
        image = convert.from_proto(request.image)
        updated = await images.update(
            image, list(request.update_mask.paths), source_date_epoch=_epoch(request)
        )
        return pb.UpdateImageResponse(image=convert.to_proto(updated))

    async def delete(self, call: Call, request: pb.DeleteImageRequest) -> Empty:
        images = self._db.scoped(call.scope()).images
        await images.delete(request.name, target=request.target.digest)
        if request.sync:
            await self._scheduler.collect()
        return Empty()


def _epoch(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> int | None:
    """The time that the caller wants instead of now."""
    epoch = request.source_date_epoch
    return nanoseconds(epoch) if request.HasField("source_date_epoch") else None


def _require_name(image: pb.Image) -> None:
    if not image.name:
        raise InvalidArgument("Image.Name required", verbatim=True)
