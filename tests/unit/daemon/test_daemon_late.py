from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cradled import errors
from cradled.api import (
    cradled_pb2,
    events_service_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
    types_pb2,
    version_pb2,
    wellknown_pb2,
)
from cradled.daemon import late
from cradled.plugin.types import Late
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub


class Version:
    async def version(self, call: Any, request: Any) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version="v")


class Events:
    async def subscribe(self, call: Any, request: Any) -> AsyncIterator[Any]:
        yield types_pb2.Envelope(topic="/t")


@pytest.mark.parametrize(
    ("table", "generated"),
    [
        (late.journal(), cradled_pb2.Journal),
        (late.daemon(), cradled_pb2.Daemon),
        (late.reflection("v1", "reflection_pb2"), reflection_pb2.ServerReflection),
        (
            late.reflection("v1alpha", "reflection_v1alpha_pb2"),
            reflection_v1alpha_pb2.ServerReflection,
        ),
    ],
)
def test_tables_without_messages_are_as_generated(table: Any, generated: Any) -> None:
    assert table.name == generated.name
    assert list(table.methods) == list(generated.methods)
    for method, known in zip(table.methods.values(), generated.methods.values(), strict=True):
        assert (method.name, method.path, *method[4:]) == (known.name, known.path, *known[4:])
        messages = [one.DESCRIPTOR.full_name for one in (method.request, method.response)]
        assert messages == [one.DESCRIPTOR.full_name for one in (known.request, known.response)]


def made(service: Any, implementation: object) -> Any:
    router = Router()
    late.add(router, service, implementation)
    return Stub(InProcess(router), service)


async def test_services_are_made_by_their_first_call() -> None:
    count = []

    def make() -> Version:
        count.append(1)
        return Version()

    stub = made(version_pb2.Version, Late(make))
    assert not count
    for _ in range(2):
        assert (await stub.version(wellknown_pb2.Empty())).version == "v"
    assert len(count) == 1


async def test_streams_pass_through() -> None:
    stub = made(events_service_pb2.Events, Late(Events))
    request = events_service_pb2.SubscribeRequest()
    assert len([message async for message in stub.subscribe(request)]) == 1


async def test_methods_that_are_not_there() -> None:
    stub = made(events_service_pb2.Events, Late(Events))
    with pytest.raises(errors.Unimplemented, match="method Publish not implemented"):
        await stub.publish(events_service_pb2.PublishRequest())


async def test_plain_services_are_served_as_they_are() -> None:
    stub = made(version_pb2.Version, Version())
    assert (await stub.version(wellknown_pb2.Empty())).version == "v"
