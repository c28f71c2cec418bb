"""Async. Streams that other calls refer to by name."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cradled.api import streaming_pb2 as pb
from cradled.api.wellknown_pb2 import Any, Empty
from cradled.convert.transfer import type_name
from cradled.errors import InvalidArgument
from cradled.rpc.call import Call
from cradled.streaming.manager import Streams

_INIT = pb.StreamInit.DESCRIPTOR.full_name


class StreamingService:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def stream(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        namespace = call.scope().namespace
        first = await anext(requests, None)
        if first is None or type_name(first) != _INIT:
            raise InvalidArgument("first message must be a StreamInit")
        name = pb.StreamInit.FromString(first.value).id
        async with self._streams.opened(namespace, name, requests) as stream:
            yield Any(type_url=Empty.DESCRIPTOR.full_name)
            async for message in stream.sent():
                yield message
