"""Version, health, introspection, events and mounts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cradled import errors
from cradled.api import (
    events_service_pb2,
    events_ttrpc_pb2,
    health_pb2,
    introspection_pb2,
    mounts_pb2,
    types_pb2,
    version_pb2,
    wellknown_pb2,
)
from cradled.core.deprecations import Deprecation
from cradled.core.values import AnyValue
from cradled.events.exchange import Exchange
from cradled.oci.platforms import Platform
from cradled.plugin.types import Plugin, Registration, SkipPlugin
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.services.events import EventsService
from cradled.services.events_ttrpc import EventsTtrpcService
from cradled.services.health import HealthService
from cradled.services.introspection import Identity, IntrospectionService
from cradled.services.mounts import MountsService
from cradled.services.version import VersionService


def stub(service: Any, implementation: object) -> Any:
    router = Router()
    router.add(service, implementation)
    return Stub(InProcess(router), service, [("containerd-namespace", "ns")])


async def test_version() -> None:
    version = stub(version_pb2.Version, VersionService("v1", "abc"))
    assert await version.version(wellknown_pb2.Empty()) == version_pb2.VersionResponse(
        version="v1", revision="abc"
    )


async def test_health() -> None:
    health = stub(health_pb2.Health, HealthService())
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (await health.check(health_pb2.HealthCheckRequest())).status == serving
    listed = await health.list(health_pb2.HealthListRequest())
    assert {name: status.status for name, status in listed.statuses.items()} == {"": serving}
    with pytest.raises(errors.NotFound, match=r"^unknown service"):
        await health.check(health_pb2.HealthCheckRequest(service="x"))


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("", health_pb2.HealthCheckResponse.SERVING),
        ("x", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN),
    ],
)
async def test_health_watch_answers_once_and_stays(service: str, status: int) -> None:
    health = stub(health_pb2.Health, HealthService())
    watch = health.watch(health_pb2.HealthCheckRequest(service=service))
    assert (await anext(watch)).status == status
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(watch)
    await watch.aclose()


async def provider(options: AnyValue) -> AnyValue:
    return AnyValue("info", options.value)


def introspection() -> Any:
    plugins = [
        Plugin(Registration("t.snapshotter", "overlayfs", ("t.other",), has_platform=True)),
        Plugin(Registration("t.runtime", "task")),
        Plugin(Registration("t.skipped", "x")),
    ]
    plugins[0].exports["root"] = "/r"
    plugins[0].capabilities.append("rebase")
    plugins[2].error = SkipPlugin("not wanted")
    service = IntrospectionService(
        {(p.registration.type, p.registration.id): p for p in plugins},
        Identity("u", 7, 8),
        platform=Platform("linux", "amd64"),
        providers={("t.runtime", "task"): provider, ("t.skipped", "x"): provider},
        deprecations=lambda: [Deprecation("io.containerd.deprecation/x", "why", 1_500_000_000)],
    )
    return stub(introspection_pb2.Introspection, service)


async def test_server() -> None:
    server = await introspection().server(wellknown_pb2.Empty())
    assert (server.uuid, server.pid, server.pidns) == ("u", 7, 8)
    (warning,) = server.deprecations
    assert (warning.id, warning.message) == ("io.containerd.deprecation/x", "why")
    assert (warning.last_occurrence.seconds, warning.last_occurrence.nanos) == (1, 500_000_000)


async def test_plugins() -> None:
    request = introspection_pb2.PluginsRequest()
    plugins = (await introspection().plugins(request)).plugins
    snapshotter, task, skipped = plugins
    assert (snapshotter.type, snapshotter.id) == ("t.snapshotter", "overlayfs")
    assert list(snapshotter.requires) == ["t.other"]
    assert dict(snapshotter.exports) == {"root": "/r"}
    assert list(snapshotter.capabilities) == ["rebase"]
    assert [(p.os, p.architecture) for p in snapshotter.platforms] == [("linux", "amd64")]
    assert not task.HasField("init_err")
    assert not task.platforms
    assert (skipped.init_err.code, skipped.init_err.message) == (2, "not wanted: skip plugin")


async def test_plugins_are_filtered() -> None:
    request = introspection_pb2.PluginsRequest(filters=["type==t.snapshotter,id==overlayfs"])
    assert [p.id for p in (await introspection().plugins(request)).plugins] == ["overlayfs"]
    request = introspection_pb2.PluginsRequest(filters=["type==t.snapshotter,id==zfs"])
    assert not (await introspection().plugins(request)).plugins


async def test_plugin_info() -> None:
    stub = introspection()
    request = introspection_pb2.PluginInfoRequest(type="t.runtime", id="task")
    plain = await stub.plugin_info(request)
    assert plain.plugin.id == "task"
    assert not plain.HasField("extra")
    request.options.value = b"o"
    extra = (await stub.plugin_info(request)).extra
    assert (extra.type_url, extra.value) == ("info", b"o")


async def test_plugin_info_that_cannot_be_had() -> None:
    stub = introspection()
    request = introspection_pb2.PluginInfoRequest(type="t.absent", id="x")
    with pytest.raises(errors.NotFound, match=r"^plugin t\.absent\.x not found"):
        await stub.plugin_info(request)
    request = introspection_pb2.PluginInfoRequest(type="t.snapshotter", id="overlayfs")
    request.options.value = b"o"
    with pytest.raises(errors.Unimplemented):
        await stub.plugin_info(request)
    request = introspection_pb2.PluginInfoRequest(type="t.skipped", id="x")
    request.options.value = b"o"
    with pytest.raises(errors.FailedPrecondition):
        await stub.plugin_info(request)


async def test_published_events_reach_subscribers() -> None:
    events = stub(events_service_pb2.Events, EventsService(Exchange()))
    filters = ['topic=="/a/b"']
    subscription = events.subscribe(events_service_pb2.SubscribeRequest(filters=filters))
    first = asyncio.ensure_future(anext(subscription))
    while not first.done():  # it may not have subscribed yet
        for topic in ("/other", "/a/b"):
            request = events_service_pb2.PublishRequest(topic=topic)
            request.event.type_url, request.event.value = "any.Type", b"v"
            await events.publish(request)
        await asyncio.sleep(0)
    envelope = await first
    assert (envelope.namespace, envelope.topic) == ("ns", "/a/b")
    assert (envelope.event.type_url, envelope.event.value) == ("any.Type", b"v")
    assert envelope.timestamp.seconds > 0
    await subscription.aclose()


async def test_bad_topics_and_filters() -> None:
    events = stub(events_service_pb2.Events, EventsService(Exchange()))
    with pytest.raises(errors.InvalidArgument, match=r'^envelope topic "a": must start with'):
        await events.publish(events_service_pb2.PublishRequest(topic="a"))
    bad = events.subscribe(events_service_pb2.SubscribeRequest(filters=["topic==="]))
    text = r"^subscription error: failed parsing subscription filters: filters: parse error:"
    with pytest.raises(errors.Error, match=text) as caught:
        await anext(bad)
    assert type(caught.value) is errors.Error


@pytest.mark.parametrize(
    ("service", "implementation", "request_type"),
    [
        (events_service_pb2.Events, EventsService, events_service_pb2.ForwardRequest),
        (events_ttrpc_pb2.Events, EventsTtrpcService, events_ttrpc_pb2.ForwardRequest),
    ],
)
async def test_forwarded_events_keep_their_time(
    service: Any, implementation: Any, request_type: Any
) -> None:
    exchange = Exchange()
    ttrpc = implementation is EventsTtrpcService
    events = stub(service, implementation(exchange.forward if ttrpc else exchange))
    subscription = exchange.subscribe()
    envelope = types_pb2.Envelope(namespace="other", topic="/x")
    with pytest.raises(errors.InvalidArgument, match=r"^timestamp must be set on forwarded event"):
        await events.forward(request_type(envelope=envelope))
    envelope.timestamp.seconds = 5
    await events.forward(request_type(envelope=envelope))
    got = await anext(aiter(subscription))
    assert (got.timestamp, got.namespace) == (5 * 10**9, "other")


async def test_mounts_are_left_to_callers() -> None:
    mounts = stub(mounts_pb2.Mounts, MountsService())
    with pytest.raises(errors.Unimplemented, match=r"^not implemented$"):
        await mounts.activate(mounts_pb2.ActivateRequest(name="n"))
    with pytest.raises(errors.NotFound, match=r'^mount "n": not found$'):
        await mounts.deactivate(mounts_pb2.DeactivateRequest(name="n"))
    with pytest.raises(errors.NotFound, match=r'^mount "n": not found$'):
        await mounts.info(mounts_pb2.InfoRequest(name="n"))
    assert [m async for m in mounts.list(mounts_pb2.ListRequest())] == []
